"""`mft assist` over a real endpoint that lies: no bad answer is accepted, nothing is written that was not asked for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.model import EndpointModel, open_endpoint
from mftcoder.cli import main
from mftcoder.curation.example import fenced
from mftcoder.curation.teacher.endpoint import EndpointConfig
from mftcoder.errors import ConfigError, EndpointError, NoAnswerAcceptedError
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

SHAPES = """\
def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("negative")
    return width * height  # of a rectangle


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
        return len(self.items)
"""
AREA = SHAPES.split("\n\n\n")[0] + "\n"
DOCUMENTED = AREA.replace("height):\n", 'height):\n    """The area of a rectangle."""\n', 1)
TESTS = """\
import pytest

from shapes import area


def test_area():
    assert area(2, 3) == 6


def test_negative():
    with pytest.raises(ValueError):
        area(-1, 2)
"""
SHORTER = AREA.replace("width < 0 or height < 0", "min(width, height) < 0")
DIFF = "diff --git a/shapes.py b/shapes.py\n--- a/shapes.py\n+++ b/shapes.py\n@@ -1,2 +1,2 @@\n def area(width, height):\n-    if width < 0:\n+    if width < 0 or height < 0:\n"


def test_of(body: str, opening: str = "") -> str:
    return fenced(f"{opening}\nfrom shapes import area\n\n\ndef test_area():\n    {body}\n")


test_of.__test__ = False  # type: ignore[attr-defined]


def patch(old: str, new: str, path: str = "shapes.py") -> str:
    return f"```diff\n--- a/{path}\n+++ b/{path}\n@@ -1,2 +1,2 @@\n def area(width, height):\n-{old}\n+{new}\n```"


CONDITION = "    if width < 0 or height < 0:"
SWAPPED = "    if height < 0 or width < 0:"
LIES: dict[str, tuple[str, str, str]] = {
    "changed code": ("comment", fenced(DOCUMENTED.replace("width * height", "width + height")), "code_changed"),
    "a changed signature": ("comment", fenced(DOCUMENTED.replace("(width, height)", "(width, height=1)")), "code_changed"),
    "another function": ("comment", fenced(DOCUMENTED.replace("area", "size")), "code_changed"),
    "code behind a docstring": ("comment", fenced('"""Doc."""\nimport os\n"""End."""'), "code_changed"),
    "an open string": ("comment", fenced('def area(width, height):\n    """Doc.'), "does_not_parse"),
    "an encoding line": ("comment", fenced(f"# -*- coding: utf-7 -*-\n{DOCUMENTED}"), "directive"),
    "an encoding that hides code": ("comment", fenced(f"# coding: rot13\n{DOCUMENTED}"), "does_not_parse"),
    "a silenced linter": ("comment", fenced(DOCUMENTED.replace("< 0:", "< 0:  # noqa")), "directive"),
    "a lost comment": ("comment", fenced(DOCUMENTED.replace("  # of a rectangle", "")), "lost_comment"),
    "a wrong example": ("comment", fenced('"""The area.\n\n>>> area(2, 3)\n5\n"""'), "wrong_example"),
    "no comment at all": ("comment", fenced(AREA), "no_change"),
    "a text that runs backwards": ("comment", fenced(DOCUMENTED.replace("The area", "\u202eThe area")), "hidden_characters"),
    "an invisible space": ("comment", fenced(DOCUMENTED.replace("The area", "The\u200barea")), "hidden_characters"),
    "letters that look alike": ("comment", fenced(DOCUMENTED.replace("width *", "ｗidth *")), "foreign_letters"),
    "prose only": ("comment", "The function computes an area.", "no_code"),
    "an unclosed fence": ("comment", f"```python\n{DOCUMENTED}", "open_fence"),
    "two code blocks": ("comment", f"{fenced(DOCUMENTED)}\n\n{fenced(AREA)}", "several_blocks"),
    "the wrong language": ("comment", fenced("int area(int w) { return w; }", "java"), "wrong_language"),
    "an empty answer": ("comment", " \n", "empty"),
    "an empty block": ("comment", "```python\n\n```", "no_code"),
    "a huge answer": ("comment", fenced(DOCUMENTED + "# more\n" * 40_000), "too_long"),
    "tests that check nothing": ("test", test_of("area(2, 3)"), "no_tests"),
    "tests that are always true": ("test", test_of("assert area(2, 3) or True"), "checks_nothing"),
    "a tuple that is always true": ("test", test_of("assert (area(2, 3) == 7, 'area')"), "checks_nothing"),
    "tests that pass on every mutant": ("test", test_of("assert area(7, 1) != 99"), "checks_nothing"),
    "tests that print PASS": ("test", test_of("print('PASS')"), "no_tests"),
    "tests that exit": ("test", test_of("sys.exit(0 if area(2, 3) == 6 else 1)", "import sys"), "forbidden_import"),
    "tests that exit unseen": ("test", test_of("assert area(2, 3) == 7 or exit(0)"), "forbidden_name"),
    "tests that raise SystemExit": ("test", test_of("assert area(2, 3)\n    raise SystemExit(0)"), "forbidden_name"),
    "tests that patch the function": ("test", test_of("assert area(2, 3) == 7", "area = lambda *_: 7"), "replaces_code"),
    "tests of their own copy": (
        "test",
        test_of("def area(*_):\n        return 7\n    assert area(2, 3) == 7"),
        "replaces_code",
    ),
    "tests that mock": ("test", test_of("assert area(2, 3)", "from unittest import mock"), "forbidden_import"),
    "tests that set attributes": ("test", test_of("area.x = 1\n    assert area.x == 1"), "replaces_code"),
    "tests that catch AssertionError": (
        "test",
        test_of("try:\n        assert area(2, 3) == 7\n    except AssertionError:\n        pass"),
        "swallows_failures",
    ),
    "tests that suppress failures": (
        "test",
        test_of("with suppress(Exception):\n        assert area(2, 3) == 7", "from contextlib import suppress"),
        "swallows_failures",
    ),
    "tests that read the bytecode": ("test", test_of("assert len(area.__code__.co_code) > 1"), "forbidden_name"),
    "tests that read the bytecode another way": (
        "test",
        test_of("assert attrgetter('__code__.co_nlocals')(area) == 2", "from operator import attrgetter"),
        "unsteady",
    ),
    "tests with wrong values": ("test", test_of("assert area(2, 3) == 5"), "tests_fail"),
    "tests that never end": ("test", test_of("while area(1, 1):\n        pass\n    assert area(1, 1)"), "tests_fail"),
    "tests that eat the memory": ("test", test_of("x = [area(1, 1)] * 10**11\n    assert x"), "tests_fail"),
    "tests that attack the sandbox": (
        "test",
        test_of("assert area(2, 3) == 6\n    os.kill(os.getppid(), 9)", "import os"),
        "forbidden_import",
    ),
    "tests that write outside": (
        "test",
        test_of("assert area(1, 1)\n    logging.FileHandler('{folder}/attacked')", "import logging"),
        "tests_fail",
    ),
    "a patch of another file": ("optimise", patch(CONDITION, SWAPPED, "other.py"), "other_file"),
    "a patch of a path with ..": ("optimise", patch(CONDITION, SWAPPED, "../shapes.py"), "other_file"),
    "a patch of an absolute path": ("optimise", patch(CONDITION, SWAPPED, "/etc/passwd"), "other_file"),
    "a patch that does not apply": ("optimise", patch("    if width < 1:", SWAPPED), "does_not_apply"),
    "a patch that is none": ("optimise", "```diff\nmake it faster\n```", "no_patch"),
    "another signature": ("optimise", fenced(SHORTER.replace("(width, height)", "(width, height, depth=1)")), "other_signature"),
    "a decorator": ("optimise", fenced(f"@staticmethod\n{SHORTER}"), "other_signature"),
    "a function that is gone": ("optimise", fenced("def other():\n    return 1\n"), "function_missing"),
    "more than the function": ("optimise", fenced(f"import math\n\n\n{SHORTER}"), "more_than_the_function"),
    "the same code": ("optimise", fenced(AREA), "no_change"),
    "wrong code": ("optimise", fenced(SHORTER.replace("width * height", "width + height")), "tests_fail"),
    "code that never ends": ("optimise", fenced(SHORTER.replace("return", "while True: pass\n    return")), "tests_fail"),
    "a new import": ("optimise", fenced(SHORTER.replace("    if", "    import os; os.getcwd()\n    if", 1)), "new_power"),
    "code that evaluates": ("optimise", fenced(SHORTER.replace("width * height", "eval('width * height')")), "new_power"),
    "an error that a linter sees": ("optimise", fenced(SHORTER.replace("    if", "    unused = f'x'\n    if", 1)), "linter"),
    "code instead of an explanation": ("explain", fenced(AREA), "no_prose"),
    "code that is never closed": ("explain", f"```python\n{DOCUMENTED}", "no_prose"),
    "an answer in colours": ("explain", "It is \x1b[31mred\x1b[0m.", "hidden_characters"),
    "findings about other lines": ("review", "shapes.py:77: this line is wrong", "other_lines"),
    "findings about other files": ("review", "other.py:2: this line is wrong", "other_lines"),
    "a review without findings": ("review", "The change looks good to me.", "no_findings"),
    "a completion of what is there": ("complete", fenced("width * height  # of a rectangle"), "empty"),
    "a completion with an error": ("complete", fenced("width * * 3"), "does_not_parse"),
    "a completion that closes more": ("complete", fenced("1) + (2"), "does_not_parse"),
}  # fmt: skip


class Liar:
    """An endpoint that answers with what a test set last."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, asked: Asked) -> Answer:
        return self.answers[min(asked.number - self.first, len(self.answers)) - 1]

    def says(self, endpoint: ScriptedEndpoint, *texts: "str | Answer") -> None:
        self.first = len(endpoint.asked)
        self.answers = [text if isinstance(text, Answer) else Answer(text) for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("assist")
    (folder / "shapes.py").write_text(SHAPES)
    (folder / "test_shapes.py").write_text(TESTS)
    return folder


@pytest.fixture(scope="module")
def liar() -> Liar:
    return Liar()


@pytest.fixture(scope="module")
def endpoint(liar: Liar) -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(liar) as server:
        yield server


@pytest.fixture(scope="module")
def assistant(endpoint: ScriptedEndpoint, folder: Path) -> Iterator[Assistant]:
    with Assistant(open_endpoint(endpoint.url, "scripted"), folder, rounds=1) as one:
        yield one


def asked_of(assistant: Assistant, verb: str) -> Any:
    if verb == "review":
        return assistant.review(DIFF)
    if verb == "complete":
        return assistant.complete("shapes.py:4:12", block=False)
    if verb == "optimise":
        return assistant.optimise("shapes.py:area", tests="test_shapes.py")
    return getattr(assistant, verb)("shapes.py:area")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ENDLESS = pytest.mark.slow(reason="programs that run until their three seconds of CPU time are used")


@pytest.mark.parametrize("lie", [pytest.param(lie, marks=ENDLESS if "never end" in lie else ()) for lie in LIES])
def test_a_lie_is_refused_for_its_own_reason_and_writes_nothing(
    assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar, folder: Path, lie: str
) -> None:
    verb, answer, code = LIES[lie]
    before = contents(folder)
    liar.says(endpoint, answer.replace("{folder}", str(folder)))
    with pytest.raises(NoAnswerAcceptedError) as refused:
        asked_of(assistant, verb)
    assert f": {code}: " in refused.value.problems[0], refused.value.problems[0]
    assert contents(folder) == before


def test_an_answer_that_was_cut_is_refused(assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar) -> None:
    liar.says(endpoint, Answer(fenced(DOCUMENTED), finish="length"))
    with pytest.raises(NoAnswerAcceptedError, match="cut"):
        assistant.comment("shapes.py:area")


def test_right_answers_are_accepted_with_the_guarantee_of_each_verb(
    assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar
) -> None:
    liar.says(endpoint, fenced(DOCUMENTED))
    assert '+    """The area of a rectangle."""' in assistant.comment("shapes.py:area").patch
    liar.says(endpoint, fenced(TESTS))
    tests = assistant.test("shapes.py:area")
    assert tests.text == TESTS
    assert " of 10 mutants fail" in tests.score
    liar.says(endpoint, fenced(SHORTER))
    assert "min(width, height)" in asked_of(assistant, "optimise").patch
    liar.says(endpoint, patch(CONDITION, SWAPPED))
    assert f"+{SWAPPED}" in asked_of(assistant, "optimise").patch
    liar.says(endpoint, "It uses `area` and `volume`.")
    assert assistant.explain("shapes.py:area").notes == ("not in the file: volume",)
    liar.says(endpoint, "shapes.py:2: `height` may be None\nshapes.py:9: no")
    review = assistant.review(DIFF)
    assert review.text == "shapes.py:2: `height` may be None"
    assert review.notes == ("1 findings left out: they name no line that the diff adds",)
    liar.says(endpoint, fenced("abs(width) * height"))
    assert "+    return abs(width) * height" in assistant.complete("shapes.py:4:12", block=False).patch


def test_bad_tests_among_good_ones_are_left_out_and_counted(
    assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar
) -> None:
    more = "\n\ndef test_wrong():\n    assert area(2, 2) == 5\n\n\ndef test_weak():\n    assert area(1, 1) != 7\n"
    liar.says(endpoint, fenced(TESTS + more))
    made = assistant.test("shapes.py:area")
    assert made.text == TESTS
    assert made.notes == (
        "1 of 4 tests left out: they fail on the code",
        "1 of 4 tests left out: they check nothing that a mutant changes",
    )


def test_a_test_case_with_class_methods_and_static_helpers_runs_and_finds_mutants(
    assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar
) -> None:
    case = """\
import unittest

from shapes import area


class TestArea(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.width = 2

    @staticmethod
    def sized(width):
        return area(width, 3)

    def test_area(self):
        self.assertEqual(self.sized(self.width), 6)
"""
    liar.says(endpoint, fenced(case))
    made = assistant.test("shapes.py:area")
    assert made.text == case
    assert "mutants fail" in made.score and not made.score.startswith("0 ")
    skips = case.replace("cls.width = 2", "raise unittest.SkipTest")
    liar.says(endpoint, *[fenced(skips)] * 4)
    with pytest.raises(NoAnswerAcceptedError, match="The tests cannot fail"):
        assistant.test("shapes.py:area")


def test_tests_that_hold_one_by_one_but_not_together_are_refused(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    (tmp_path / "counter.py").write_text(
        "SEEN = []\n\n\ndef count(item):\n    SEEN.append(item)\n    return len(SEEN) + 0\n"
    )
    first = "def test_first():\n    assert count('a') == 1\n"
    liar.says(endpoint, fenced(f"{first}\n\ndef test_second():\n    assert count('b') == 1\n"), fenced(first))
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=2) as one:
        made = one.test("counter.py:count")
    assert [refusal.code for refusal in made.refusals] == ["not_together"]


def test_a_function_with_an_example_in_its_docstring_is_optimised(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    documented = AREA.replace("height):\n", 'height):\n    """Multiply.\n\n    >>> area(2, 3)\n    6\n    """\n', 1)
    (tmp_path / "shapes.py").write_text(documented)
    (tmp_path / "test_shapes.py").write_text(TESTS)
    liar.says(endpoint, fenced(documented.replace("width < 0 or height < 0", "min(width, height) < 0")))
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=1) as one:
        assert "+    if min(width, height) < 0:" in asked_of(one, "optimise").patch


def test_a_crash_of_a_mutant_does_not_make_a_test_that_checks_nothing_good(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    (tmp_path / "firsts.py").write_text("def first(items):\n    return items[0]\n")
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=1) as one:
        liar.says(endpoint, fenced("def test_first():\n    assert first([1]) == 1 or True\n"))
        with pytest.raises(NoAnswerAcceptedError, match="checks_nothing"):
            one.test("firsts.py:first")
        liar.says(endpoint, fenced("def test_first():\n    assert first([1]) == 1\n"))
        assert " mutants fail" in one.test("firsts.py:first").score


def test_the_reason_of_a_refusal_goes_back_to_the_model(endpoint: ScriptedEndpoint, liar: Liar, folder: Path) -> None:
    liar.says(endpoint, fenced(AREA), fenced(DOCUMENTED))
    with Assistant(open_endpoint(endpoint.url, "scripted"), folder, rounds=3) as one:
        proposal = one.comment("shapes.py:area")
    assert [refusal.code for refusal in proposal.refusals] == ["no_change"]
    assert "was not accepted. The answer adds no comment." in endpoint.asked[-1].text


def test_a_model_that_only_writes_sentences_can_comment(endpoint: ScriptedEndpoint, liar: Liar, folder: Path) -> None:
    liar.says(endpoint, fenced(AREA), "Compute the area of a rectangle.")
    with Assistant(open_endpoint(endpoint.url, "scripted"), folder, rounds=2) as one:
        assert '+    """Compute the area of a rectangle."""' in one.comment("shapes.py:area").patch
        liar.says(endpoint, fenced(AREA), 'Compute. """\nimport os\n"""')
        with pytest.raises(NoAnswerAcceptedError, match="answer 2: no_docstring"):
            one.comment("shapes.py:area")


def test_a_docstring_that_the_program_reads_is_refused_and_one_that_a_decorator_may_show_is_named(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    (tmp_path / "reads.py").write_text(f"{AREA}\n\nprint(area.__doc__)\n")
    (tmp_path / "shows.py").write_text(f"import click\n\n\n@click.command('area')\n{AREA}")
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=1) as one:
        liar.says(endpoint, fenced(DOCUMENTED))
        with pytest.raises(NoAnswerAcceptedError, match="docstring_is_read"):
            one.comment("reads.py:area")
        assert "add none: the program reads it" in endpoint.asked[-1].text
        liar.says(endpoint, fenced(f"@click.command('area')\n{DOCUMENTED}"))
        shown = one.comment("shows.py:5")
    assert shown.notes == ("area: the decorator @click.command may show this docstring to users",)


def test_lines_of_a_docstring_that_are_broken_elsewhere_are_no_new_comment(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    documented = DOCUMENTED.replace("The area of a rectangle.", "The area of\n    a rectangle.\n    ")
    (tmp_path / "shapes.py").write_text(documented)
    liar.says(endpoint, fenced(DOCUMENTED))
    with (
        Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=1) as one,
        pytest.raises(NoAnswerAcceptedError, match="no_change"),
    ):
        one.comment("shapes.py:area")


def test_a_refusal_is_one_line_whatever_it_quotes(endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path) -> None:
    example = DOCUMENTED.replace("rectangle.", "rectangle.\n\n    >>> area(2, 3)\n    6\n    ")
    (tmp_path / "shapes.py").write_text(example)
    liar.says(endpoint, fenced(DOCUMENTED))
    with (
        Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=1) as one,
        pytest.raises(NoAnswerAcceptedError, match="lost_docstring: An example") as refused,
    ):
        one.comment("shapes.py:area")
    assert len(refused.value.problems) == 1 and "\n" not in refused.value.problems[0]


def test_a_fix_shows_the_error_before_and_keeps_what_works(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    broken = "def mean(items):\n    return sum(items) / len(items)\n"
    (tmp_path / "numbers_.py").write_text(broken)
    log = 'Traceback:\n  File "numbers_.py", line 2, in mean\nZeroDivisionError: division by zero\n'
    shows = fenced("def test_empty():\n    assert mean([]) == 0\n")
    works = fenced("def test_mean():\n    assert mean([1, 2, 6]) == 3\n")
    silent = fenced("def mean(items):\n    return 0\n")
    right = fenced("def mean(items):\n    return sum(items) / len(items) if items else 0\n")
    liar.says(endpoint, works, shows, works, silent, right)
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path, rounds=2) as one:
        fixed = one.fix("numbers_.py", log)
        one.apply(fixed)
    assert [refusal.code for refusal in fixed.refusals] == ["error_not_shown", "tests_fail"]
    assert "if items else 0" in (tmp_path / "numbers_.py").read_text()


def test_the_command_writes_only_what_is_asked_for(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.py").write_bytes(SHAPES.replace("\n", "\r\n").encode())
    place = ("--url", endpoint.url, "--model-name", "scripted", "--folder", str(tmp_path))
    liar.says(endpoint, fenced(DOCUMENTED))
    main(["assist", "comment", "shapes.py:area", *place])
    assert capsys.readouterr().out.startswith("--- a/shapes.py\n+++ b/shapes.py\n@@ ")
    assert (tmp_path / "shapes.py").read_bytes() == SHAPES.replace("\n", "\r\n").encode()
    liar.says(endpoint, fenced(DOCUMENTED))
    main(["assist", "comment", "shapes.py:area", "--apply", *place])
    assert (tmp_path / "shapes.py").read_bytes() == SHAPES.replace(AREA, DOCUMENTED).replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    "words, problem",
    [
        (["comment", "../outside.py"], "lies outside the working folder"),
        (["comment", "link.py"], "lies outside the working folder"),
        (["comment", "missing.py"], "cannot be read"),
        (["comment", "pipe.py"], "is no plain file"),
        (["comment", "folder.py"], "cannot be read: Is a directory"),
        (["comment", "binary.py"], "is not UTF-8"),
        (["explain", "empty.py"], "is empty, so there is nothing to explain"),
        (["explain", "shapes.py", "--timeout", "0"], "--timeout"),
        (["optimise", "shapes.py:area", "--tests", "broken.py"], "broken.py: The tests do not parse as Python"),
        (["optimise", "shapes.py:area", "--tests", "main.go"], "main.go: is not in the language of shapes.py"),
        (["comment", "shapes.py:volume"], "has no function 'volume'"),
        (["test", "shapes.py"], "give FILE:FUNCTION"),
        (["test", "shapes.py:area", "--out", "../tests.py"], "lies outside the working folder"),
        (["test", "shapes.py:area", "--out", "shapes.py"], "exists already"),
        (["complete", "shapes.py:999"], "the file has"),
        (["optimise", "main.js"], "there is no linter for JavaScript"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_asks_nothing(
    endpoint: ScriptedEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    (tmp_path / "shapes.py").write_text(SHAPES)
    (tmp_path / "main.go").write_text("package main\n\nfunc add(a int, b int) int {\n\tc := a + b\n\treturn c\n}\n")
    (tmp_path / "main.js").write_text("function add(a, b) {\n  return a + b;\n}\n")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "binary.py").write_bytes(b"x = 1\xff\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "broken.py").write_text("def test_area(:\n")
    (tmp_path.parent / "outside.py").write_text(SHAPES)
    (tmp_path / "link.py").symlink_to(tmp_path.parent / "outside.py")
    before = len(endpoint.asked)
    with pytest.raises(SystemExit) as ended:
        main(["assist", *words, "--url", endpoint.url, "--model-name", "scripted", "--folder", str(tmp_path)])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
    assert len(endpoint.asked) == before


def test_a_file_that_changed_meanwhile_is_not_overwritten(
    assistant: Assistant, endpoint: ScriptedEndpoint, liar: Liar, folder: Path
) -> None:
    path = folder / "changing.py"
    path.write_text(AREA)
    liar.says(endpoint, fenced(DOCUMENTED))
    proposal = assistant.comment("changing.py:area")
    path.write_text("# other\n")
    with pytest.raises(ConfigError, match="changed on disk"):
        assistant.apply(proposal)
    assert path.read_text() == "# other\n"
    path.unlink()


def test_a_file_whose_folder_became_a_link_is_not_written_through_it(
    endpoint: ScriptedEndpoint, liar: Liar, tmp_path: Path
) -> None:
    inner, outside = tmp_path / "work" / "inner", tmp_path / "outside"
    for folder in (inner, outside):
        folder.mkdir(parents=True)
        (folder / "shapes.py").write_text(AREA)
    liar.says(endpoint, fenced(DOCUMENTED))
    with Assistant(open_endpoint(endpoint.url, "scripted"), tmp_path / "work", rounds=1) as one:
        proposal = one.comment("inner/shapes.py:area")
        inner.rename(tmp_path / "moved")
        inner.symlink_to(outside)
        with pytest.raises(ConfigError, match="lies outside the working folder"):
            one.apply(proposal)
    assert (outside / "shapes.py").read_text() == AREA


NONSENSE = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "null": b"null",
    "no text": b'{"choices": [{"message": {"content": 5}}]}',
    "half a character": b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    "bytes": b"\xff\xfe\x00",
    "brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE.keys())
def test_an_endpoint_that_answers_nonsense_is_an_error_of_one_line(
    endpoint: ScriptedEndpoint, liar: Liar, folder: Path, raw: bytes
) -> None:
    liar.says(endpoint, Answer(raw=raw))
    model = EndpointModel(EndpointConfig(url=endpoint.url, model="scripted", retries=0))
    with Assistant(model, folder, rounds=1) as one, pytest.raises(EndpointError) as refused:
        one.explain("shapes.py:area")
    assert len(refused.value.problems) == 1 and "\n" not in refused.value.problems[0]


@pytest.mark.parametrize("answer", [Answer(never=True), Answer("half", headers={"Content-Length": "10000"})])
def test_an_endpoint_that_hangs_is_asked_once(
    endpoint: ScriptedEndpoint, liar: Liar, folder: Path, answer: Answer
) -> None:
    liar.says(endpoint, answer)
    model = open_endpoint(endpoint.url, "scripted", timeout_seconds=1)
    before = len(endpoint.asked)
    with Assistant(model, folder, rounds=3) as one, pytest.raises(EndpointError, match="no answer after 1 s"):
        one.explain("shapes.py:area")
    assert len(endpoint.asked) <= before + 1
