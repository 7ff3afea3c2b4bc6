"""One function makes one example of each task: its question and its answer."""

import ast
import random
from collections import Counter

import pytest

from mftcoder.curation.example import fenced, fenced_blocks
from mftcoder.curation.mining.functions import MinedFunction, mine_functions
from mftcoder.curation.mining.recording import Behaviour
from mftcoder.curation.mining.sources import SourceModule
from mftcoder.curation.mining.tasks import TASKS, UnfitError, repair_function, write_asserts, write_test

SOURCE = '''def clip(value, low, high):
    """Return value moved into the range from low to high.

    >>> clip(7, 0, 5)
    5
    >>> [clip(v, 0, 1)
    ...  for v in (-1, 3)]
    [0, 1]
    """
    if value < low:
        return low
    if value > high:
        return high
    return value
'''


def function_of(source: str = SOURCE) -> MinedFunction:
    (function,) = mine_functions(SourceModule("clip.py", source, ast.parse(source)), Counter())
    return function


def code_of(text: str) -> str:
    """The code in the first fenced block."""
    return text.split("```python\n")[1].split("\n```")[0]


@pytest.mark.parametrize("seed", range(8))
def test_completion_begins_with_the_prompts_code_and_ends_the_function(seed: int) -> None:
    example = TASKS["complete_function"](function_of(), random.Random(seed))
    begun = code_of(example.prompt)
    assert code_of(example.answer) == SOURCE.rstrip()
    assert SOURCE.startswith(begun)
    assert "return low" in begun  # half of its statements stand
    assert not begun.endswith("return value")
    assert example.code.rstrip("\n") == begun


@pytest.mark.parametrize("seed", range(8))
def test_writing_shows_signature_and_docstring_and_nothing_of_the_body(seed: int) -> None:
    example = TASKS["write_function"](function_of(), random.Random(seed))
    assert "clip(value, low, high)" in example.prompt
    assert "moved into the range" in example.prompt
    assert "return low" not in example.prompt
    assert code_of(example.answer) == SOURCE.rstrip()


def test_the_docstring_is_asked_of_the_bare_function() -> None:
    example = TASKS["write_docstring"](function_of(), random.Random(0))
    assert "moved into" not in example.prompt
    assert code_of(example.prompt).startswith("def clip(value, low, high):\n    if value < low:")
    assert ast.literal_eval(example.answer).strip() == ast.get_docstring(ast.parse(SOURCE).body[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_the_broken_function_parses_and_differs_from_the_repaired_one(seed: int) -> None:
    example = TASKS["repair_function"](function_of(), random.Random(seed))
    broken, repaired = ast.parse(code_of(example.prompt)), ast.parse(code_of(example.answer))
    assert ast.dump(broken) != ast.dump(repaired)
    assert code_of(example.answer) == SOURCE.rstrip()


def test_the_doctest_is_taken_out_of_the_question() -> None:
    example = TASKS["write_test"](function_of(), random.Random(0))
    assert ">>>" not in example.prompt
    assert "moved into the range" in example.prompt
    assert ast.parse(code_of(example.prompt))
    assert code_of(example.answer).splitlines() == [
        ">>> clip(7, 0, 5)",
        "5",
        ">>> [clip(v, 0, 1)",
        "...  for v in (-1, 3)]",
        "[0, 1]",
    ]


def test_the_bug_can_be_chosen() -> None:
    broken = SOURCE.replace("<", ">=")
    example = repair_function(function_of(), random.Random(0), [broken])
    assert example.code == broken
    assert code_of(example.answer) == SOURCE.rstrip()


def test_an_assert_of_what_it_answers_is_asked_for() -> None:
    behaviour = Behaviour((("7, 0, 5", "5"), ("-1, 0, 5", "0")), ())
    example = write_asserts(function_of(), behaviour)
    assert code_of(example.prompt) == SOURCE.rstrip()
    assert code_of(example.answer) == "assert clip(7, 0, 5) == 5"


def test_a_unit_test_is_the_answer_to_its_function() -> None:
    example = write_test(function_of(), "def test_clip():\n    assert clip(1, 2, 3) == 2")
    assert code_of(example.answer) == "def test_clip():\n    assert clip(1, 2, 3) == 2"


@pytest.mark.parametrize(
    ("task", "source", "reason"),
    [
        ("write_function", "def plain(value):\n    result = value + value + value\n    return result", "no docstring"),
        ("write_test", "def plain(value):\n    result = value + value + value\n    return result", "no doctest"),
        (
            "complete_function",
            "def plain(value):\n    return value + value + value + value + 100",
            "body of one statement",
        ),
    ],
)
def test_a_function_that_makes_no_example_says_why(task: str, source: str, reason: str) -> None:
    with pytest.raises(UnfitError, match=reason):
        TASKS[task](function_of(source), random.Random(0))


def test_a_method_is_said_to_be_one() -> None:
    text = "class Box:\n    def width(self):\n        '''Return the width of the box.'''\n        return self.right - self.left + 0 * self.x\n"
    (method,) = mine_functions(SourceModule("box.py", text, ast.parse(text)), Counter())
    assert "method of the class Box" in TASKS["write_function"](method, random.Random(0)).prompt


def test_a_fenced_block_ends_on_a_line_of_its_own() -> None:
    assert fenced("x = 1\n\n") == "```python\nx = 1\n```"


def test_code_with_a_fence_in_it_gets_a_longer_one() -> None:
    code = 'text = """\n```\nx\n```\n"""'
    assert [block.code for block in fenced_blocks(fenced(code))] == [f"{code}\n"]
