"""CodeFuseEval (CodeFuse, 2023): completion in six languages, text to code, both also with Chinese instructions, and translation.

Its records are those of HumanEval-X and MBPP with other prompts and, for translation, other tests. A record's Chinese instruction is
one sentence: it becomes a comment above the declaration (`codefuseeval-instruction-LANGUAGE-cn`) or replaces MBPP's sentence. The
prompts of humaneval_python_cn, with Chinese docstrings, lack their final line break, so one is added.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from mftcoder.benchmarks.answers import brace_code, python_code
from mftcoder.benchmarks.answers.extraction import best_block, cut_at_stop_words
from mftcoder.benchmarks.families import humanevalx, mbpp
from mftcoder.benchmarks.families.humanevalpack import HEADERS, LANGUAGES, TITLES
from mftcoder.benchmarks.problem import Family, Problem, PromptMode, Task, task_of
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.execution.sandbox import Program

_REPOSITORY = "codefuse-ai/CodeFuseEval"
_LICENCE = "Apache-2.0"
_TRANSLATIONS = {
    ("cpp", "java"): 594,
    ("cpp", "python"): 601,
    ("java", "cpp"): 589,
    ("java", "python"): 662,
    ("python", "cpp"): 588,
    ("python", "java"): 650,
}
"""(source, target) -> number of problems."""


def _source(folder: str, name: str) -> Source:
    return Source(f"codefuseeval/{folder}/{name}.jsonl", HubData(_REPOSITORY, file=f"{folder}/{name}.jsonl"))


def _completion_source(variant: str) -> Source:
    return _source("code_completion", f"humaneval_{variant.replace('-', '_')}")


def _completion(variant: str) -> tuple[str, Task]:
    language, source = variant.removesuffix("-cn"), _completion_source(variant)

    def problem(record: Mapping[str, Any]) -> Problem:
        lacks_end = language == "python" and not record["prompt"].endswith("\n")
        return humanevalx.problem_of(record, language, record["prompt"] + "\n" * lacks_end)

    family = humanevalx.family(language, "CodeFuseEval")
    return task_of(f"codefuseeval-completion-{variant}", source, problem, family, language, 164, _LICENCE)


def _instruction_prompt(record: Mapping[str, Any], language: str) -> str:
    """The declaration with its Chinese sentence: as a docstring in Python, else as a comment above the function."""
    declaration = record["declaration"]
    sentence = [line.strip() for line in record["prompt_text_chinese"].strip().splitlines()]
    if language == "python":
        signature = declaration.rstrip().rstrip('" \n')  # Python/142 has a stray quote at the end
        return "\n    ".join([signature, '"""', *sentence, '"""\n'])
    name = brace_code.entry_name(declaration, "", language)
    head = brace_code.before_entry(declaration, name, language)
    function = declaration[len(head) :].lstrip("\n")
    if language == "go":  # Go's declarations lack the imports and helpers of the prompt
        head = _LAST_COMMENT.sub("\n", brace_code.before_entry(record["prompt"], name, language))
    indent = function[: len(function) - len(function.lstrip())]
    return head + "".join(f"{indent}// {line}\n" for line in sentence) + function


_LAST_COMMENT = re.compile(r"(?:^(?://.*)?\n)+\Z", re.MULTILINE)


def _ask_in_chinese(problem: Problem, mode: PromptMode) -> str:
    code = problem.prompt.strip()
    if mode != "chat":
        return code
    wish = f"请补全下面的 {TITLES[problem.language]} 函数，并用一个代码块给出完整的代码。"
    return f"{wish}\n\n```{problem.language}\n{code}\n```"


def _instructions(language: str) -> tuple[str, Task]:
    def problem(record: Mapping[str, Any]) -> Problem:
        return humanevalx.problem_of(record, language, _instruction_prompt(record, language))

    name, source = f"codefuseeval-instruction-{language}-cn", _completion_source(language)
    family = replace(humanevalx.family(language, "CodeFuseEval"), prompt=_ask_in_chinese)
    return task_of(name, source, problem, family, language, 164, _LICENCE)


_TESTS_WISH = {"en": "Your code should satisfy these tests:", "cn": "你的代码必须能够通过这些测试用例:"}
"""Between sentence and tests, without a space, as in CodeFuseEval's own generation script."""


def _text_problem(record: Mapping[str, Any], sentence: str) -> Problem:
    tests = "\n".join([record["test_setup"] or "", *record["test"]]) + "\n"
    entry = mbpp.entry_point_of(record["canonical_solution"], record["test"][0])
    prompt = f'"""\n{sentence}\n{record["test"][0]}\n"""\n'
    fields = {**record, "text": sentence, "test_list": record["test"]}
    return Problem(
        record["task_id"], "python", prompt, tests, entry, mbpp.STOP_WORDS, record["canonical_solution"], fields
    )


def _text_prompt(speech: str, problem: Problem, mode: PromptMode) -> str:
    if mode == "completion" or (mode == "chat" and speech == "en"):
        return mbpp.FAMILY.prompt(problem, mode)
    wish, tests = _TESTS_WISH[speech], "\n".join(problem.fields["test_list"])
    if mode == "instruct":
        return f"{problem.fields['text']}{wish}\n{tests}"
    return f"{problem.fields['text']}\n\n{wish}\n\n```python\n{tests}\n```\n\n请用一个 Python 代码块回答。"


def _text(name: str, speech: str, field: str) -> tuple[str, Task]:
    """A sentence in English or Chinese, and tests."""

    def problem(record: Mapping[str, Any]) -> Problem:
        return _text_problem(record, record[field].strip())

    family = replace(mbpp.FAMILY, prompt=partial(_text_prompt, speech))
    return task_of(name, _source("nl2code", "mbpp_x"), problem, family, "python", 500, _LICENCE)


def _translation_problem(record: Mapping[str, Any], language: str) -> Problem:
    """The problem with the reference's signature and helpers, because the tests call functions by those names and types."""
    reference, tests = record["canonical_solution"], record["test"]
    if language == "python":
        names = python_code.functions_of(reference)
        entry = brace_code.function_asked_for(names, tests) or names[-1]
        if any(re.search(rf"\b{name}\(", tests) for name in names if name != entry):
            tests = python_code.helpers_of(reference, entry) + tests
        declaration = reference
    else:
        asked_for = brace_code.function_asked_for(brace_code.names_defined(reference, language), tests)
        entry = asked_for or str(record["func_title"])
        declaration = brace_code.up_to_its_body(reference, entry, language)
    fields = {**record, "declaration": declaration}
    return Problem(record["task_id"], language, record["prompt"], tests, entry, (), reference, fields)


def _translation_prompt(source: str, problem: Problem, mode: PromptMode) -> str:
    target, code = TITLES[problem.language], problem.prompt.strip()
    if mode == "completion":
        return f"code translation\n{TITLES[source]}:\n{code}\n{target}:"
    wish = f"Translate this {TITLES[source]} function into {target}; the tests call it as {problem.entry_point}."
    return f"{wish} Answer with one code block.\n\n```{source}\n{code}\n```"


def _translation_answer(problem: Problem, text: str, mode: PromptMode) -> str:
    return best_block(text, problem.entry_point) or cut_at_stop_words(text, ("\n```", "\ncode translation"))


def _translation_program(problem: Problem, answer: str) -> Program:
    code = best_block(answer, problem.entry_point) or answer if "```" in answer else answer
    if problem.language == "python":
        return python_code.python_program(problem, python_code.with_import_header(code))
    return brace_code.brace_program(problem, code)


def _translation(source: str, target: str, problems: int) -> tuple[str, Task]:
    name, file = f"codefuseeval-translation-{source}-{target}", _source("code_trans", f"codeTrans_{source}_to_{target}")
    notes = {"header": HEADERS[target], "test set": "CodeFuseEval", "assembly": "answer, tests"}
    family = Family(partial(_translation_prompt, source), _translation_answer, _translation_program, notes)
    return task_of(name, file, partial(_translation_problem, language=target), family, target, problems, _LICENCE)


CODEFUSEEVAL = dict(
    [
        *map(_completion, (*LANGUAGES, "python-cn")),
        *map(_instructions, LANGUAGES),
        _text("codefuseeval-mbpp_x", "en", "prompt"),
        _text("codefuseeval-mbpp_x-cn", "cn", "prompt_text_chinese"),
        *(_translation(source, target, problems) for (source, target), problems in _TRANSLATIONS.items()),
    ]
)
