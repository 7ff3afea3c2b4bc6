"""Tests that a model wrote in Python: each one runs as it stands, without pytest and without an event loop."""

from pathlib import Path

import pytest

from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.suites.tests import single_tests

RIGHT = "def test_b(): assert area(2, 3) == 6"
CASE = "import unittest\nclass TestArea(unittest.{base}TestCase):\n    {method}\n    def test_b(self): self.assertEqual(area(2, 3), 6)"


@pytest.fixture
def area(tmp_path: Path) -> FunctionText:
    (tmp_path / "shapes.py").write_text("def area(w, h):\n    return w * h\n")
    return find_function(WorkingFolder(tmp_path).read("shapes.py"), "area")


@pytest.mark.parametrize(
    "code",
    [
        RIGHT,
        "def test_a(*rest, h=3): assert area(2, h) == 6",
        "def check(w, h): assert area(w, h) == 6\ndef test_a(): check(2, 3); assert True",
        CASE.format(base="", method="def setUp(self): self.width = 2"),
        CASE.format(base="", method="@classmethod\n    def setUpClass(cls): cls.width = 2"),
        CASE.format(base="", method="@staticmethod\n    def sized(width): return area(width, 3)"),
        CASE.format(base="", method="def check(self, width): self.assertEqual(area(width, 3), 6)"),
    ],
)
def test_functions_and_test_cases_are_taken(area: FunctionText, code: str) -> None:
    assert len(single_tests(area, code)) == 1


@pytest.mark.parametrize(
    "code, reason",
    [
        (f"def test_a(tmp_path): assert area(2, 3) == 6\n{RIGHT}", "test_a: takes tmp_path"),
        (f"def test_a(w, h=3): assert area(2, 3) == 6\n{RIGHT}", "test_a: takes w. Write tests without parameters"),
        (f"def test_a(*, w): assert area(2, 3) == 6\n{RIGHT}", "test_a: takes w"),
        (CASE.format(base="", method="def test_a(self, capsys): self.assertEqual(1, 1)"), "test_a: takes capsys"),
        (CASE.format(base="", method="async def test_a(self): self.assertEqual(area(2, 3), 7)"), "async tests"),
        (CASE.format(base="IsolatedAsyncio", method="async def test_a(self): self.assertEqual(1, 1)"), "async tests"),
        (CASE.format(base="", method="@unittest.skip('')\n    def test_a(self): self.assertEqual(1, 2)"), "decorators"),
        (CASE.format(base="", method="@staticmethod\n    def test_a(): assert area(2, 3) == 7"), "decorators"),
        (CASE.format(base="", method="@classmethod\n    def test_a(cls): assert area(2, 3) == 7"), "decorators"),
        (CASE.format(base="", method="@unittest.skip('')\n    def setUp(self): self.width = 2"), "decorators"),
        (CASE.format(base="", method="@staticmethod(area)\n    def sized(w): return 6"), "decorators"),
        (f"@staticmethod\ndef check(): assert area(2, 3) == 6\n{RIGHT}", "decorators"),
        (f"async def test_a(): assert area(2, 3) == 6\n{RIGHT}", "async tests"),
    ],
)
def test_what_would_not_run_is_refused_though_another_test_runs(area: FunctionText, code: str, reason: str) -> None:
    with pytest.raises(RefusedAnswer, match=reason) as refused:
        single_tests(area, code)
    assert refused.value.code == "not_a_test"
