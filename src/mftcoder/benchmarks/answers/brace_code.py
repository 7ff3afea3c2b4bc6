"""Answers in C++, Go, Java, JavaScript and Rust: from a problem and an answer to the parts of a program.

As in Python, an answer is put into its place but never repaired.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mftcoder.benchmarks.answers.extraction import best_block, cut_after_block, cut_at_stop_words
from mftcoder.benchmarks.problem import Problem, PromptMode
from mftcoder.execution.sandbox import Program


@dataclass(frozen=True)
class Syntax:
    """The syntax of a language, as far as it matters for placing an answer."""

    title: str
    definition: str  # a pattern for the definition of function {name}
    imports: str  # a pattern for a line that imports names
    open_blocks: int = 1  # braces that are open where a completion begins
    stop: tuple[str, ...] = ()


SYNTAX: Mapping[str, Syntax] = {
    "cpp": Syntax(
        "C++",
        r"^[ \t]*(?!return\b|else\b)[A-Za-z_][\w:<>,*& \t]*[\s*&>]{name}\s*\([^;{{}}]*\)\s*\{{",
        r"^\s*(#.*|using namespace .*)$",
    ),
    "go": Syntax("Go", r"^func\s+{name}\s*\(", r"^$", stop=("\n//", "\nfunc main(", "struct", "\nfunc")),
    "java": Syntax(
        "Java",
        r"^[ \t]*(?:public|private|protected|static|final)\s[\w<>,\[\]?. \t]*\b{name}\s*\([^;{{}}]*\)",
        r"^\s*import .*;",
        open_blocks=2,
    ),
    "js": Syntax(
        "JavaScript",
        r"^(?:const|let|var|(?:async\s+)?function\*?)\s+{name}\b",
        r"^\s*(?:const|let|var)\s.*\brequire\(.*$",
    ),
    "rust": Syntax("Rust", r"\bfn\s+{name}\b", r"^\s*use .*;"),
}
"""Stop words are those of the reference harness: only Go has any besides the end of the block."""

_ANY_NAME = r"(\w+)"


def names_defined(code: str, language: str) -> list[str]:
    """The functions that `code` defines, in order."""
    return re.findall(SYNTAX[language].definition.format(name=_ANY_NAME), code, re.MULTILINE)


def entry_name(declaration: str, entry_point: str, language: str) -> str:
    """The function under test: the entry point, or the last function of the declaration if the data misspells it."""
    defined = names_defined(declaration, language)
    return entry_point if entry_point in defined or not defined else defined[-1]


def before_entry(declaration: str, name: str, language: str) -> str:
    """The code before the function under test: imports and helpers."""
    heads = list(re.finditer(SYNTAX[language].definition.format(name=re.escape(name)), declaration, re.MULTILINE))
    return declaration[: heads[-1].start()] if heads else ""


_GIVEN = re.compile(r"poly|encode_?cyclic|encode_?shift", re.IGNORECASE)
"""Helpers that three problems of HumanEval define themselves. In some translations only the reference defines them."""


def function_asked_for(defined: Iterable[str], tests: str) -> str | None:
    """The first of these functions that the tests call and the problem does not define itself."""
    return next((name for name in defined if re.search(rf"\b{name}\(", tests) and not _GIVEN.fullmatch(name)), None)


def up_to_its_body(code: str, name: str, language: str) -> str:
    """`code` as a declaration: the function `name` is moved to its end and cut off where its body begins."""
    heads = list(re.finditer(SYNTAX[language].definition.format(name=re.escape(name)), code, re.MULTILINE))
    if not heads:
        return code
    start = code.rfind("\n", 0, heads[-1].start() + 1) + 1
    opening = code.index("{", heads[-1].start()) + 1
    after = code[opening + len(cut_after_block(code[opening:]) or code[opening:]) :]
    if language == "java":
        after = after[: after.rfind("}")]  # leave its class open too
    return f"{code[:start]}{after.rstrip()}\n{code[start:opening]}\n"


def trusted_declaration(problem: Problem) -> str:
    """The data's text up to the function under test: helpers that tests use come from it, never from an answer."""
    prompt = str(problem.fields.get("prompt", ""))
    if problem.language == "go" and problem.entry_point in names_defined(prompt, "go"):
        return prompt  # Go's declarations contain only the function's head
    return str(problem.fields["declaration"])


def assemble(problem: Problem, answer: str) -> str:
    """The candidate's source: a completion after the prompt, or a whole function after the imports and helpers that it lacks."""
    code, language = _unfenced(problem, answer), problem.language
    name = problem.entry_point
    if language == "cpp":
        code = code.split("int main")[0]  # as in the reference harness: the tests have their own main
    whole = re.search(SYNTAX[language].definition.format(name=re.escape(name)), code, re.MULTILINE)
    # Code that closes more braces than it opens continues the prompt.
    continues_prompt = cut_after_block(code, single_quotes=language == "js") is not None
    if continues_prompt or not (whole or (language == "java" and re.search(r"\bclass\s+Solution\b", code))):
        return problem.prompt + code
    if language == "java":
        return _whole_java(problem, code)
    context = before_entry(str(problem.fields["declaration"]), name, language)
    helpers = names_defined(context, language)
    if helpers and set(helpers) <= set(names_defined(code, language)):
        context = "\n".join(line for line in context.splitlines() if re.match(SYNTAX[language].imports, line))
    imports = re.compile(SYNTAX[language].imports)
    lines = [line for line in context.splitlines() if not (imports.match(line) and line.strip() in code)]
    return "\n".join([*lines, code])


def _whole_java(problem: Problem, code: str) -> str:
    needed = re.findall(SYNTAX["java"].imports, str(problem.fields["declaration"]), re.MULTILINE)
    imports = "\n".join(line for line in needed if line.strip() not in code)
    if re.search(r"\bclass\s+Solution\b", code):
        return f"{imports}\n{code}"
    own = "\n".join(re.findall(SYNTAX["java"].imports, code, re.MULTILINE))
    body = re.sub(SYNTAX["java"].imports, "", code, flags=re.MULTILINE)
    return f"{imports}\n{own}\nclass Solution {{\n{body}\n}}\n"


def _unfenced(problem: Problem, answer: str) -> str:
    """The fenced code if the answer has fences. In code, three backticks can occur in JavaScript only, and rarely do."""
    if "```" not in answer:
        return answer
    before = answer.partition("```")[0]
    if answer.count("```") == 1 and "}" in before:
        return before  # the model closed a fence that the prompt opened
    return best_block(answer, problem.entry_point) or before


def answer_in(problem: Problem, text: str, mode: PromptMode) -> str:
    """The answer in a completion: in chat mode the fenced code, else the prompt and the text up to the end of its block."""
    if mode == "chat":
        return best_block(text, problem.entry_point) or text
    syntax = SYNTAX[problem.language]
    body = cut_at_stop_words(text.rstrip(), problem.stop)
    cut = cut_after_block(body, syntax.open_blocks, single_quotes=problem.language == "js")
    if cut is None:
        cut = _closed_java(body) if problem.language == "java" else body[: body.rfind("}") + 1] or body
    return problem.prompt.rstrip() + cut


def _closed_java(body: str) -> str:
    """A class without its end (because of the token limit or a main method), closed as in the reference harness."""
    start = body.find("public static void main")
    code = body[:start] + "}" if start >= 0 else body
    code = code[: code.rfind("}")] + "}" if "}" in code else code
    return code + "\n}" if code.count("{") - 1 == code.count("}") else code


_ENUM = re.compile(r"(?:#\[derive\([^)]*\)\]\s*)?(?:pub\s+)?enum\s+(\w+)\s*(?:<[^>]*>)?\s*\{[^}]*\}")


def _types_of(problem: Problem) -> list[str]:
    """Rust enums that the tests use, as the reference defines them."""
    found = _ENUM.finditer(problem.reference)
    return [match.group() for match in found if re.search(rf"\b{match.group(1)}\b", problem.tests)]


def brace_program(problem: Problem, candidate: str) -> Program:
    """The program, with the roles that the language's module in execution/compiled needs."""
    fields, name = problem.fields, problem.entry_point
    files = {
        "candidate": candidate,
        "tests": problem.tests,
        "entry_point": name,
        "declaration": trusted_declaration(problem),
    }
    if problem.language == "rust":
        files["types"] = "\n".join(_types_of(problem))
    if problem.language == "go":
        files["setup"] = str(fields.get("test_setup", ""))
    if problem.language == "js":
        files["helpers"] = before_entry(problem.prompt, name, "js")
    return Program(problem.language, files)
