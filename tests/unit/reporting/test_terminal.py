"""Tables on a terminal of 80 columns: a row is one line, names are complete, advice is printed once."""

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mftcoder.app.scoring.evaluate import Score
from mftcoder.benchmarks.catalogue import all_tasks
from mftcoder.benchmarks.passk import estimate
from mftcoder.cli import cli
from mftcoder.cli.scoring.evaluate import print_scores
from mftcoder.execution.languages import LANGUAGES
from mftcoder.reporting.terminal import print_table, print_table_with_names

LONG = "Qwen-1_8B-contest-checkpoint-3000-of-the-second-try"


def printed(call, *arguments, width: int = 80, **keywords) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    call(console, *arguments, **keywords)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_row_is_a_line_and_numbers_are_right_aligned():
    lines = printed(print_table, ("task", "n"), [("a", "5"), ("bcd", "500")], numbers=("n",))
    assert lines == ["task    n", "a       5", "bcd   500"]


def test_the_gap_between_columns_shrinks_before_a_line_is_wrapped():
    rows = [("a" * 39, "b" * 40)]
    assert printed(print_table, ("x", "y"), rows)[1] == "a" * 39 + " " + "b" * 40
    assert printed(print_table, ("x", "y"), rows, width=90)[1] == "a" * 39 + "  " + "b" * 40


def test_on_a_narrower_terminal_no_cell_is_cut():
    (_, line) = printed(print_table, ("x", "y"), [("a" * 39, "b" * 40)], width=40)
    assert line == "a" * 39 + " " + "b" * 40


def test_names_that_do_not_fit_are_listed_below_by_letters():
    rows = [("humanevalsynthesize-python", LONG, "0.5"), ("mbpp", "base", "0.4"), ("mbpp", LONG, "0.6")]
    lines = printed(print_table_with_names, ("task", "model", "value"), rows, "model")
    assert [line.split() for line in lines[1:4]] == [
        [rows[0][0], "a", "0.5"],
        ["mbpp", "b", "0.4"],
        ["mbpp", "a", "0.6"],
    ]
    assert lines[4:] == ["models", f"  a  {LONG}", "  b  base"]
    assert printed(print_table_with_names, ("task", "model", "value"), rows, "model", width=100)[1].split()[1] == LONG


def test_where_letters_do_not_fit_either_the_numbers_of_a_row_stand_below_its_words():
    rows = [("mbpp", LONG, "0.5", "500"), ("", "[x]", "0.25", "7")]
    lines = printed(
        print_table_with_names, ("task", "model", "value", "n"), rows, "model", width=18, numbers=("value", "n")
    )
    assert [line.rstrip() for line in lines] == [
        f"mbpp {LONG}", "    value 0.5", "    n 500", "  [x]", "    value 0.25", "    n 7",
    ]  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_scores_are_a_line_each_and_a_name_in_brackets_is_kept(capsys: pytest.CaptureFixture[str]):
    scores = (estimate([1] * 164, [1] * 80 + [0] * 84, 1), estimate([20] * 164, [3] * 164, 10))
    longest = max(all_tasks(), key=len)
    print_scores([Score(longest, LONG, scores, Path()), Score("mini", "[x]", scores[:1], Path())])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["task", longest, longest, "mini"]
    assert all(len(line) <= 80 for line in lines[:4])
    assert lines[4:] == ["models", f"  a  {LONG}", "  b  [x]"]
    print_scores([Score("mini", "[x]", scores[:1], Path())])
    assert "[x]" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_a_benchmark_is_a_line_and_how_to_get_a_toolchain_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    output = CliRunner().invoke(cli, ["benchmarks", "--data-dir", str(tmp_path)]).output
    table, _, below = output.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == sorted(all_tasks())
    assert max(map(len, table.splitlines())) <= 80
    for language in LANGUAGES.values():
        assert below.count(language.install) == (1 if language.tools else 0), language.name
    assert below.count("humanevalpack/python.jsonl") == 1
