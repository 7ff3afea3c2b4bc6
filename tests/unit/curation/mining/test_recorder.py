"""The recorder, which runs beside a mined function in the sandbox: which calls it finds, and which it keeps."""

import ast
import json

import pytest

from mftcoder.curation.mining import recorder

CLIP = """
def clip(value, low, high):
    if value < low:
        return low
    if value > high:
        return high
    return value
"""


def recorded(
    source: str, name: str, arity: int, *mutants: str, context: str = "", most: int = 5, **given: list[str]
) -> dict:
    found = recorder.record(
        context,
        source,
        name,
        mutants=mutants,
        arity=arity,
        seeds=given.get("seeds", []),
        own=given.get("own", []),
        most=most,
    )
    return json.loads(found)


def test_the_calls_kept_are_what_the_function_answers_and_tell_every_mutant_that_can_be_told() -> None:
    mutants = [CLIP.replace("<", ">="), CLIP.replace("return high", "return low"), CLIP]
    found = recorded(CLIP, "clip", 3, *mutants)
    names: dict = {}
    exec(CLIP, names)
    assert [repr(eval(f"clip({arguments})", names)) for arguments, _ in found["calls"]] == [
        a for _, a in found["calls"]
    ]
    assert found["killed"] == [0, 1]  # the third is the function itself


def test_the_same_function_gives_the_same_calls() -> None:
    mutant = CLIP.replace("<", "<=").replace("low", "high")
    assert recorded(CLIP, "clip", 3, mutant) == recorded(CLIP, "clip", 3, mutant)


def test_no_more_calls_are_kept_than_asked_for() -> None:
    assert len(recorded(CLIP, "clip", 3, most=2)["calls"]) == 2


def test_a_call_of_the_docstring_goes_before_others_that_tell_as_much() -> None:
    source = "def shout(text):\n    return text.upper() + '!'\n"
    found = recorded(source, "shout", 1, source.replace("'!'", "'?'"), seeds=["'good morning'"])
    assert found["calls"][0] == ["'good morning'", "'GOOD MORNING!'"]


def test_literals_of_the_function_are_tried() -> None:
    source = "def code(kind):\n    return {'left-handed': 1, 'right': 2}.get(kind, 0)\n"
    found = recorded(source, "code", 1, source.replace("1", "9"), own=["'left-handed'"])
    assert ["'left-handed'", "1"] in found["calls"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(x):\n    return object()\n", "no plain values fit it"),
        ("def f(x):\n    raise ValueError\n", "no plain values fit it"),
        ("def f(x):\n    while True: pass\n", "no plain values fit it"),
        ("def f(x):\n    return float('nan')\n", "no plain values fit it"),
        (
            "import itertools\ncount = itertools.count()\ndef f(x):\n    next(count)\n    return next(count)\n",
            "always answers the same",
        ),
        ("import os\ndef f(x):\n    return os.urandom(4)\n", "no plain values fit it"),
        ("def f(x):\n    return 3\n", "always answers the same"),
        ("import sys\ndef f(x):\n    sys.exit()\n", "no plain values fit it"),
        ("def f(x):\n    return 10 ** 5000\n", "no plain values fit it"),
    ],
)
def test_a_function_without_lasting_answers_says_why(source: str, reason: str) -> None:
    assert recorded(source, "f", 1).get("reason") == reason


def test_a_function_that_changes_its_arguments_is_given_fresh_ones() -> None:
    source = "def last(items):\n    return items.pop()\n"
    calls = dict(recorded(source, "last", 1, source.replace("pop()", "pop(0)"))["calls"])
    assert calls["[1, 2, 3]"] == "3"


def test_what_the_function_needs_of_its_module_runs_before_it() -> None:
    source = "def twice(text):\n    return text * FACTOR\n"
    found = recorded(source, "twice", 1, source.replace("*", "+"), context="FACTOR = 2\n")
    assert found["killed"] == [0]


@pytest.mark.parametrize("text", [text for texts in recorder.VALUES.values() for text in texts])
def test_every_value_is_a_literal_of_its_kind(text: str) -> None:
    assert text in recorder.VALUES[recorder.kind_of(text)]
    assert recorder.is_plain(ast.literal_eval(text))
