"""Make an example of each task from a mined function, worded like the questions that code models get.

An `UnfitError` says why a function makes no example. Answers that are code are in a fenced block, as graders of chat models expect.
"""

import doctest
import random
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mftcoder.curation.example import fenced
from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.languages import mutations as tree_mutations
from mftcoder.curation.mining.languages.grammars import LANGUAGES, title_of
from mftcoder.curation.mining.languages.spans import Span, spans
from mftcoder.curation.mining.mutations import Mutation, mutations
from mftcoder.curation.mining.recording import Behaviour

MAX_EXAMPLE_CHARS = 3200  # about 1,000 tokens of code
MIN_DOCSTRING_WORDS, MAX_DOCSTRING_CHARS = 4, 800
GAP = "<MISSING>"
Choice = TypeVar("Choice")


class UnfitError(Exception):
    """The function makes no example of this task. The text is the reason, which is counted."""


@dataclass(frozen=True)
class Example:
    """One question and its answer. `code` is the code in the question, which an exam's problem needs. `fields` go into the record."""

    prompt: str
    answer: str
    code: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


def complete_function(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the function up to a line in the second half of its body; the answer is the whole function."""
    starts = spans(function).starts
    if len(starts) < 2:
        raise UnfitError("body of one statement")
    cut = rng.choice(starts[(len(starts) + 1) // 2 :])
    begun = "".join(function.source.splitlines(keepends=True)[: cut - 1])
    title = title_of(function.language)
    ask = rng.choice([f"Complete the following {title} function.", f"Finish this {title} function."])
    return _about(ask, function, begun, function.source, begun)


def complete_line(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the function up to a statement; the answer is this statement, which has a line of its own."""
    found = spans(function)
    first = function.source.find("\n", len(function.stub)) + 1
    span = _one_of([span for span in found.lines if span[0] >= first > 0], "line to write", rng)
    ask = f"Write the next line of the following {title_of(function.language)} function."
    return _next(ask, function, span)


def complete_block(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the function up to the beginning of a block; the answer is the block's lines."""
    span = _one_of(spans(function).blocks, "block to write", rng)
    ask = f"Write the block that comes next in the following {title_of(function.language)} function."
    return _next(ask, function, span)


def _next(ask: str, function: MinedFunction, span: Span) -> Example:
    begun = function.source[: span[0]].rstrip(" \t")
    return _about(ask, function, begun, function.source[slice(*span)], begun)


def fill_middle(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the function with a gap; the answer is what belongs there: a line, a block or an expression.

    The record has the three parts too, as `prefix`, `middle` and `suffix`. Joined in this order they are the function.
    """
    if GAP in function.source:
        raise UnfitError("the mark of a gap in the code")
    found = spans(function)
    levels = {"line": found.lines, "block": found.blocks, "expression": found.expressions}
    level = _one_of([name for name, inside in levels.items() if inside], "line, block or expression to leave out", rng)
    start, end = rng.choice(levels[level])
    prefix, middle, suffix = function.source[:start], function.source[start:end], function.source[end:]
    ask = f"Write the code that is missing at {GAP} in the following {title_of(function.language)} function."
    made = _about(ask, function, f"{prefix}{GAP}{suffix}", middle)
    return replace(made, fields={"level": level, "prefix": prefix, "middle": middle, "suffix": suffix})


def _one_of(choices: Sequence[Choice], what: str, rng: random.Random) -> Choice:
    if not choices:
        raise UnfitError(f"no {what}")
    return rng.choice(choices)


def write_function(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the signature and docstring, as code or as prose; the answer is the whole function."""
    _need_docstring(function)
    title = title_of(function.language)
    if rng.random() < 0.7:
        ask = rng.choice(
            [
                f"Write a {title} function that does what its {LANGUAGES[function.language].doc_name} says.",
                f"Complete the following {title} function. Answer with the whole function in one code block.",
                f"Implement this {title} function. Answer with the whole function in one code block.",
            ]
        )
        return _about(ask, function, function.stub, function.source, function.stub)
    signature = " ".join(function.header.split()).removesuffix(":").removesuffix(" {")
    ask = f"Write a {title} function `{signature}`.{_of_class(function)}"
    return _example(f"{ask}\n\n{function.docstring}", fenced(function.source, function.language), function.stub)


def write_docstring(function: MinedFunction, rng: random.Random) -> Example:
    """The question is the function without its docstring; the answer is the docstring, or the comment as it stands above the function."""
    _need_docstring(function)
    title, name = title_of(function.language), LANGUAGES[function.language].doc_name
    ask = rng.choice([f"Write a {name} for the following {title} function.", f"Document this {title} function."])
    quoted = f'"""{function.docstring}"""' if "\n" not in function.docstring else f'"""{function.docstring}\n"""'
    answer = quoted if function.language == "python" else function.docstring_text.rstrip()
    code = fenced(function.header + function.body, function.language)
    return _example(f"{ask}{_of_class(function)}\n\n{code}", answer)


def repair_function(function: MinedFunction, rng: random.Random, broken: Sequence[str] = ()) -> Example:
    """The question is the function with a bug (one of `broken`, if given); the answer is the original function."""
    if broken:
        code = rng.choice(broken)
    elif mutation := next(_mutations(function, rng), None):
        code = mutation.source
    else:
        raise UnfitError("no bug fits")
    title = title_of(function.language)
    ask = rng.choice([f"Fix bugs in {function.name}.", f"There is a bug in the following {title} function. Fix it."])
    return _about(ask, function, code, function.source, code)


def repair_as_committed(function: MinedFunction, before: str, subject: str, commit: str, rng: random.Random) -> Example:
    """The question is the function before a commit that fixed it, and half of the time what the commit says; the answer is it afterwards."""
    said = f" The commit that fixed it says: {subject}" if rng.random() < 0.5 and subject else ""
    ask = f"There is a bug in the following {title_of(function.language)} function. Fix it."
    if said and not said.endswith((".", "!", "?")):
        said += "."
    code = fenced(before, function.language)
    answer = fenced(function.source, function.language)
    made = _example(f"{ask}{said}{_of_class(function)}\n\n{code}", answer, before)
    return replace(made, fields={"commit": commit})


def _mutations(function: MinedFunction, rng: random.Random) -> Iterator[Mutation]:
    if function.language == "python":
        return mutations(function.source, rng)
    return tree_mutations.mutations(function.source, function.language, function.owner, rng)


def write_doctest(function: MinedFunction, _: random.Random) -> Example:
    """The question is the function without the examples in its docstring; the answer is the examples."""
    if function.language != "python" or ">>>" not in function.docstring:
        raise UnfitError("no doctest in the docstring")
    prose, examples = _parted(function.docstring)
    quoted = textwrap.indent(f'"""{prose}\n"""' if "\n" in prose else f'"""{prose}"""', "    ") + "\n" if prose else ""
    stub = function.header + quoted + function.body
    return _example(f"Write a doctest for the following Python function.\n\n{fenced(stub)}", fenced(examples))


def write_test(function: MinedFunction, test: str) -> Example:
    """The question is the function; the answer is a test of it from its own project."""
    ask = f"Write a unit test for the following {title_of(function.language)} function."
    return _about(ask, function, function.source, test)


def write_asserts(function: MinedFunction, behaviour: Behaviour) -> Example:
    """The question is the function; the answer is an assert of a result that was recorded by running it."""
    ask = "Write an assert statement that tests the following Python function. Use literal values only."
    code, asserts = function.source, behaviour.asserts(function.name, 1)
    return _example(f"{ask}\n\n{fenced(code)}", fenced(asserts), code)


def translate(function: MinedFunction, into: MinedFunction) -> Example:
    """The question is a function in one language; the answer is the same function in another language, from its own project."""
    ask = f"Translate the following {title_of(function.language)} function into {title_of(into.language)}."
    code = fenced(function.source, function.language)
    made = _example(f"{ask}{_of_class(function)}\n\n{code}", fenced(into.source, into.language), function.source)
    return replace(made, fields={"translated_from": function.origin})


def with_context(example: Example, context: str, language: str) -> Example:
    """The example with code of the repository in its question, before the code that it asks about."""
    ask, _, rest = example.prompt.partition("\n\n")
    prompt = f"{ask}\n\nIts repository has:\n\n{fenced(context, language)}\n\n{rest}"
    return replace(example, prompt=prompt) if context else example


TASKS: dict[str, Callable[[MinedFunction, random.Random], Example]] = {
    "complete_function": complete_function,
    "write_function": write_function,
    "write_docstring": write_docstring,
    "repair_function": repair_function,
    "write_test": write_doctest,  # and write_test, for functions that have one
    "complete_line": complete_line,
    "complete_block": complete_block,
    "fill_middle": fill_middle,
}
DEFAULT_TASKS = tuple(TASKS)[:5]
CONTEXT_TASKS = frozenset({"complete_function", "write_function", "complete_line", "complete_block", "fill_middle"})
"""Tasks whose answer is code of the function, so that it helps to know what the repository has."""
TRANSLATE = "translate"
TASK_NAMES = (*TASKS, TRANSLATE)


def _example(prompt: str, answer: str, code: str = "") -> Example:
    if len(prompt) + len(answer) > MAX_EXAMPLE_CHARS:
        raise UnfitError("too long")
    return Example(prompt, answer, code)


def _about(ask: str, function: MinedFunction, shown: str, answer: str, code: str = "") -> Example:
    """A question that shows code of the function, with code for an answer."""
    language = function.language
    return _example(f"{ask}{_of_class(function)}\n\n{fenced(shown, language)}", fenced(answer, language), code)


def _of_class(function: MinedFunction) -> str:
    kind = LANGUAGES[function.language].owner_word
    return f" It is a method of the {kind} {function.owner}." if function.owner else ""


def _need_docstring(function: MinedFunction) -> None:
    if len(function.docstring.split()) < MIN_DOCSTRING_WORDS:
        raise UnfitError("no docstring of four words")
    if len(function.docstring) > MAX_DOCSTRING_CHARS:
        raise UnfitError("docstring too long")


def _parted(docstring: str) -> tuple[str, str]:
    """`(prose before the first example, the examples as a doctest)`."""
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
    except ValueError as error:
        raise UnfitError("broken doctest") from error
    if not any(example.want for example in examples):
        raise UnfitError("doctest without a result")
    lines = []
    for example in examples:
        first, *rest = example.source.rstrip("\n").split("\n")
        lines += [f">>> {first}", *(f"... {line}" for line in rest), *example.want.rstrip("\n").split("\n")]
    prose = docstring[: docstring.index(">>>")].rstrip()
    return prose, "\n".join(line for line in lines if line)
