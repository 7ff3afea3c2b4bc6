"""Each kind of bug, on a function that only this bug fits, and on text in which positions are hard to find."""

import ast
import random

import pytest

from mftcoder.curation.mining.mutations import MUTATIONS, Positions, mutations


def mutants(kind: str, source: str) -> set[str]:
    tree = ast.parse(source)
    edits = MUTATIONS[kind](tree, Positions(source))
    return {source[: edit.start] + edit.replacement + source[edit.end :] for edit in edits}


@pytest.mark.parametrize(
    ("kind", "source", "mutant"),
    [
        ("comparison", "def f(a, b):\n    return a <= b", "def f(a, b):\n    return a < b"),
        ("comparison", "def f(a, b):\n    return a not in b", "def f(a, b):\n    return a in b"),
        ("operator", "def f(a, b):\n    return a // b", "def f(a, b):\n    return a * b"),
        ("boolean operator", "def f(a, b):\n    return a and b", "def f(a, b):\n    return a or b"),
        ("off by one", "def f(a):\n    return a[0]", "def f(a):\n    return a[1]"),
        ("off by one", "def f(a):\n    return range(len(a) - 1)", "def f(a):\n    return range(len(a))"),
        ("slice", "def f(a):\n    return a[1:]", "def f(a):\n    return a[:]"),
        ("condition", "def f(a):\n    if not a:\n        return 1", "def f(a):\n    if a:\n        return 1"),
        ("condition", "def f(a):\n    while a.b:\n        a.c()", "def f(a):\n    while not a.b:\n        a.c()"),
        ("swapped arguments", "def f(a, b):\n    return g(a,  b)", "def f(a, b):\n    return g(b,  a)"),
        ("wrong variable", "def f(a, b):\n    return a", "def f(a, b):\n    return b"),
        ("wrong function", "def f(a):\n    return max(a)", "def f(a):\n    return min(a)"),
        ("wrong function", "def f(a):\n    return a.lower()", "def f(a):\n    return a.upper()"),
        ("missing return", "def f(a):\n    return a + 1", "def f(a):\n    a + 1"),
        ("missing statement", "def f(a):\n    a += 1\n    return a", "def f(a):\n    return a"),
    ],
)
def test_each_kind_of_bug(kind: str, source: str, mutant: str) -> None:
    assert mutant in mutants(kind, source)


def test_columns_are_right_behind_letters_of_several_bytes() -> None:
    source = "def f(a, b):\n    return 'é→ü', a < b  # ñ"
    assert mutants("comparison", source) == {"def f(a, b):\n    return 'é→ü', a <= b  # ñ"}


def test_comments_and_layout_stay() -> None:
    source = "def f(a):\n    # a comment\n    x = (a  +  1)   # another\n    return x"
    assert mutants("operator", source) == {source.replace("a  +  1", "a  -  1")}


def test_a_chosen_mutant_parses_and_is_another_program() -> None:
    source = "def f(a, b):\n    if a < b:\n        a, b = b, a\n    while b:\n        a, b = b, a % b\n    return a"
    for seed in range(50):
        mutation = next(mutations(source, random.Random(seed)))
        assert mutation is not None
        assert ast.dump(ast.parse(mutation.source)) != ast.dump(ast.parse(source))


def test_the_same_generator_makes_the_same_bug() -> None:
    source = "def f(a, b):\n    return a[1:] + b[:-1] if a > b else max(a, b)"
    assert list(mutations(source, random.Random(3))) == list(mutations(source, random.Random(3)))


def test_a_function_without_a_place_for_a_bug_has_none() -> None:
    assert list(mutations("def f():\n    global x\n    x = 'y'", random.Random(0))) == []


def test_mutants_go_round_the_kinds_and_are_all_different() -> None:
    source = "def f(a, b):\n    if a < b and b < 9:\n        return a[1:] + b[0]\n    return max(a, b)\n"
    found = list(mutations(source, random.Random(0)))
    kinds = {mutant.kind for mutant in found}
    assert len(kinds) > 5
    assert {mutant.kind for mutant in found[: len(kinds)]} == kinds
    assert len({mutant.source for mutant in found}) == len(found) > 10
