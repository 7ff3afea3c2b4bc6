"""Examples in a question: a call with plain values, and the plain value that it gives.

Four forms are read, each on a line of its own, perhaps behind `-`, `*`, `assert` or between backticks:

    >>> f(2)            f(2) == 3            f(2) -> 3            f(2) => 3
    3

The call names a function of the answer, and arguments and value are Python literals. Anything else is prose.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Set

from mftcoder.curation.example import parse_python

Example = tuple[str, str, int | None]
"""The text of the call, the text of its value, and the decimals of a value that is a float."""

_LONGEST = 2000
_MOST = 50
_ARROW = re.compile(r"\s*(?:->|=>|→|⇒)\s*")
_AROUND = re.compile(r"^(?:[-*•]\s+|\d+[.)]\s+)?`*\s*(?:assert\s+)?|[\s`]+$")


def examples_in(question: str, functions: Set[str]) -> list[Example]:
    """The examples of these functions, in order, at most 50."""
    found: list[Example] = []
    for call, value in _pairs(question):
        example = _example(call, value, functions)
        if example is not None and len(found) < _MOST:
            found.append(example)
    return found


def _pairs(question: str) -> Iterator[tuple[str, str]]:
    """What could be a call and its value, as text."""
    lines = [line.strip() for line in question.splitlines()]
    for number, line in enumerate(lines):
        if len(line) > _LONGEST or "(" not in line:
            continue
        if line.startswith(">>>"):
            if number + 1 < len(lines) and len(lines[number + 1]) <= _LONGEST:
                yield line.removeprefix(">>>").strip(), lines[number + 1]
            continue
        plain = _AROUND.sub("", line)
        arrow = _ARROW.search(plain)
        if arrow:
            yield plain[: arrow.start()], plain[arrow.end() :]
        elif "==" in plain:
            yield _sides(plain)


def _sides(claim: str) -> tuple[str, str]:
    """`f(2) == 3, "message"` -> the two sides as text; empty if it is no comparison of two values."""
    tree = parse_python(f"assert {claim}")
    test = tree.body[0].test if tree and isinstance(tree.body[0], ast.Assert) else None
    if not isinstance(test, ast.Compare) or [type(operator) for operator in test.ops] != [ast.Eq]:
        return "", ""
    return ast.unparse(test.left), ast.unparse(test.comparators[0])


def _example(call: str, value: str, functions: Set[str]) -> Example | None:
    """The example; None if the texts are no call of one of the functions with literals, and no literal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is a warning of the parser
            asked, given = (ast.parse(text.strip(), mode="eval").body for text in (call, value))
            expected = ast.literal_eval(given)
            if (
                not isinstance(asked, ast.Call)
                or not isinstance(asked.func, ast.Name)
                or asked.func.id not in functions
            ):
                return None
            for argument in (*asked.args, *(keyword.value for keyword in asked.keywords)):
                ast.literal_eval(argument)
            texts = ast.unparse(asked), ast.unparse(given)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    shows_decimals = isinstance(expected, float) and "e" not in value.lower()
    return *texts, len(value.strip().partition(".")[2]) if shows_decimals else None
