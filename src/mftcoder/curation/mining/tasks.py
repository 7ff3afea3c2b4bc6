"""A mined function -> an example of each task, worded as the questions that code models are asked.

Goes in: a `MinedFunction` (and, for tests, its test's text or what it answers) and a generator seeded for it. Comes out: an `Example`,
or an `UnfitError` that says why this function makes none. Answers that are code stand in a fenced block, as graders of chat models
expect.
"""

import ast
import doctest
import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.mutations import mutate
from mftcoder.curation.mining.recording import Behaviour

MAX_EXAMPLE_CHARS = 3200  # about 1,000 tokens of code
MIN_DOCSTRING_WORDS, MAX_DOCSTRING_CHARS = 4, 800


class UnfitError(Exception):
    """This function makes no example of this task; the text is the reason that is counted."""


@dataclass(frozen=True)
class Example:
    """One question and its answer. `code` is the code in the question, as an exam's problem needs it."""

    prompt: str
    answer: str
    code: str = ""


def fenced(code: str) -> str:
    """The code as a Markdown block."""
    return f"```python\n{code.rstrip()}\n```"


def complete_function(function: MinedFunction, rng: random.Random) -> Example:
    """The function up to some line in the second half of its body -> the whole function."""
    starts = sorted(_statement_lines(function))
    if len(starts) < 2:
        raise UnfitError("body of one statement")
    cut = rng.choice(starts[(len(starts) + 1) // 2 :])
    begun = "".join(function.source.splitlines(keepends=True)[: cut - 1])
    ask = rng.choice(["Complete the following Python function.", "Finish this Python function."])
    return _example(f"{ask}{_of_class(function)}\n\n{fenced(begun)}", fenced(function.source), begun)


def write_function(function: MinedFunction, rng: random.Random) -> Example:
    """Signature and docstring, as code or as prose -> the whole function."""
    _need_docstring(function)
    stub = function.header + function.docstring_text
    if rng.random() < 0.7:
        ask = rng.choice(
            [
                "Write a Python function that does what its docstring says.",
                "Complete the following Python function. Answer with the whole function in one code block.",
                "Implement this Python function. Answer with the whole function in one code block.",
            ]
        )
        return _example(f"{ask}{_of_class(function)}\n\n{fenced(stub)}", fenced(function.source), stub)
    signature = " ".join(function.header.split()).removesuffix(":")
    ask = f"Write a Python function `{signature}`.{_of_class(function)}"
    return _example(f"{ask}\n\n{function.docstring}", fenced(function.source), stub)


def write_docstring(function: MinedFunction, rng: random.Random) -> Example:
    """The function without its docstring -> the docstring."""
    _need_docstring(function)
    ask = rng.choice(["Write a docstring for the following Python function.", "Document this Python function."])
    quoted = f'"""{function.docstring}"""' if "\n" not in function.docstring else f'"""{function.docstring}\n"""'
    return _example(f"{ask}{_of_class(function)}\n\n{fenced(function.header + function.body)}", quoted)


def repair_function(function: MinedFunction, rng: random.Random, broken: Sequence[str] = ()) -> Example:
    """The function with a bug (one of `broken`, if there are any) -> the function as it was."""
    mutation = None if broken else mutate(function.source, rng)
    if not broken and mutation is None:
        raise UnfitError("no bug fits")
    code = mutation.source if mutation else rng.choice(broken)
    ask = rng.choice([f"Fix bugs in {function.name}.", "There is a bug in the following Python function. Fix it."])
    return _example(f"{ask}{_of_class(function)}\n\n{fenced(code)}", fenced(function.source), code)


def write_doctest(function: MinedFunction, _: random.Random) -> Example:
    """The function without the examples in its docstring -> the examples."""
    if ">>>" not in function.docstring:
        raise UnfitError("no doctest in the docstring")
    prose, examples = _parted(function.docstring)
    quoted = textwrap.indent(f'"""{prose}\n"""' if "\n" in prose else f'"""{prose}"""', "    ") + "\n" if prose else ""
    stub = function.header + quoted + function.body
    return _example(f"Write a doctest for the following Python function.\n\n{fenced(stub)}", fenced(examples))


def write_test(function: MinedFunction, test: str) -> Example:
    """The function -> a test method that its project has for it."""
    ask = "Write a unit test for the following Python function."
    return _example(f"{ask}{_of_class(function)}\n\n{fenced(function.source)}", fenced(test))


def write_asserts(function: MinedFunction, behaviour: Behaviour) -> Example:
    """The function -> an assert of what it answers, as running it has shown."""
    ask = "Write an assert statement that tests the following Python function. Use literal values only."
    code, asserts = function.source, behaviour.asserts(function.name, 1)
    return _example(f"{ask}\n\n{fenced(code)}", fenced(asserts), code)


TASKS: dict[str, Callable[[MinedFunction, random.Random], Example]] = {
    "complete_function": complete_function,
    "write_function": write_function,
    "write_docstring": write_docstring,
    "repair_function": repair_function,
    "write_test": write_doctest,  # and write_test, for functions that have one
}


def _example(prompt: str, answer: str, code: str = "") -> Example:
    if len(prompt) + len(answer) > MAX_EXAMPLE_CHARS:
        raise UnfitError("too long")
    return Example(prompt, answer, code)


def _of_class(function: MinedFunction) -> str:
    return f" It is a method of the class {function.owner}." if function.owner else ""


def _need_docstring(function: MinedFunction) -> None:
    if len(function.docstring.split()) < MIN_DOCSTRING_WORDS:
        raise UnfitError("no docstring of four words")
    if len(function.docstring) > MAX_DOCSTRING_CHARS:
        raise UnfitError("docstring too long")


def _statement_lines(function: MinedFunction) -> set[int]:
    """The lines of `function.source` on which a statement of its body begins, nested ones too, the docstring aside."""
    body_line = (function.header + function.docstring_text).count("\n") + 1
    tree = ast.parse(function.source)
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno >= body_line}


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
