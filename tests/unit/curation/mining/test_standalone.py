"""A function with the code of its module that it needs to run, and no other code."""

import ast
from collections import Counter

import pytest

from mftcoder.curation.mining.functions import mine_functions
from mftcoder.curation.mining.sources import SourceModule
from mftcoder.curation.mining.standalone import StandaloneFunction, standalone_functions

MODULE = '''
"""A module."""
from __future__ import annotations

import os
import textwrap as tw
from string import *

WIDTH = 8
LIMIT = WIDTH * 2
unused = print

try:
    import nothing_like_this as fast
except ImportError:
    fast = None

def helper(text):
    return tw.shorten(text, LIMIT)

def other(text):
    return os.path.join(text, text, text, text)

def wrapped(text, how="left", /, *, strict=False):
    """Return the text, wrapped.

    >>> wrapped("a b")
    'a b'
    >>> wrapped(os.sep)
    '/'
    """
    if how == "left" and fast is None:
        return helper(text)
    return text * 3
'''


def alone(text: str, path: str = "package/part.py") -> tuple[list[StandaloneFunction], Counter[str]]:
    module, skips = SourceModule(path, text, ast.parse(text)), Counter[str]()
    return list(standalone_functions(module, list(mine_functions(module, Counter())), skips, 42)), skips


def test_the_context_is_what_the_function_uses_and_what_that_uses() -> None:
    found = next(item for item in alone(MODULE)[0] if item.function.name == "wrapped")
    for needed in (
        "import textwrap as tw",
        "LIMIT = WIDTH * 2",
        "WIDTH = 8",
        "def helper",
        "except ImportError",
        "import *",
    ):
        assert needed in found.context
    for foreign in ("unused", "def other", "import os", "def wrapped"):
        assert foreign not in found.context


def test_the_program_runs_as_a_part_of_its_package() -> None:
    found = next(item for item in alone(MODULE)[0] if item.function.name == "wrapped")
    names: dict = {}
    exec(compile(found.context + found.function.source, "<test>", "exec"), names)
    assert names["wrapped"]("one two") == "one two"
    assert (names["__name__"], names["__package__"]) == ("package.part", "package")


def test_relative_imports_mean_what_they_mean_in_the_module() -> None:
    text = "from . import message\n\ndef kind_of(text):\n    return message.__name__ + ' and ' + text\n"
    (found,) = alone(text, "email/part.py")[0]
    names: dict = {}
    exec(found.context + found.function.source, names)
    assert names["kind_of"]("x") == "email.message and x"


def test_calls_in_the_docstring_and_literals_are_there_to_be_tried() -> None:
    found = next(item for item in alone(MODULE)[0] if item.function.name == "wrapped")
    assert (found.arity, found.seeds) == (1, ("'a b'",))
    assert "'left'" in found.literals
    assert len(set(found.mutants)) == len(found.mutants) > 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class A:\n    def f(self, x):\n        return x + x + x + x + x + x + x + x + x + x\n", "a method"),
        ("def f(x):\n    yield x + x + x + x + x + x + x + x + x + x + x + x + x + x\n", "a generator or a coroutine"),
        ("def f(x):\n    print(x + x + x + x + x + x + x + x + x + x + x + x + x + x)\n", "returns nothing"),
        ("def f():\n    return 'a long text that is always the same, word for word'\n", "no arguments"),
        ("def f(x, *, key):\n    return [x, key, x, key, x, key, x, key, x, key, x]\n", "named ones"),
        ("import random\ndef f(x):\n    return random.choice([x, x, x, x, x, x, x, x])\n", "depends on the clock"),
        ("def f(x):\n    import time\n    return x + time.time() + x + x + x + x + x\n", "depends on the clock"),
    ],
)
def test_what_cannot_be_tried_with_plain_values_is_counted(text: str, reason: str) -> None:
    found, skips = alone(text)
    assert found == []
    assert [reason in key for key in skips] == [True]
