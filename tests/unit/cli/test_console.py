"""Lines and bars on a terminal and in a file: the same verb prints what each can show."""

import io
import logging

import pytest
from rich.console import Console

from mftcoder.cli import console as printing
from mftcoder.errors import Interrupted
from mftcoder.log import LOGGER, say, say_progress, warn


def printed(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, bars_in_files: bool = False) -> str:
    output = Console(
        file=io.StringIO(), width=120, force_terminal=terminal, color_system="standard" if terminal else None
    )
    monkeypatch.setattr(printing, "console", lambda *, stderr: output)
    with printing.shown(bars_in_files=bars_in_files) as on_progress:
        on_progress("a [b] task", 2, 7)
        say("a line with [brackets]")
        warn("a warning")
        say_progress("step 5/7")
        on_progress("a [b] task", 5, 7, "3 [x] pass")
    return output.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_shows_a_bar_in_place_of_the_lines_that_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printed(monkeypatch, terminal=True)
    assert "a [b] task" in shown and "5/7" in shown and "3 [x] pass" in shown
    assert "a line with [brackets]" in shown and "\x1b[33ma warning" in shown and "step 5/7" not in shown


def test_a_file_gets_the_lines_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, terminal=False).splitlines() == ["a line with [brackets]", "a warning", "step 5/7"]


def test_a_file_gets_the_last_state_of_a_bar_where_a_command_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printed(monkeypatch, terminal=False, bars_in_files=True)
    assert shown.count("a [b] task") == 1 and "5/7" in shown and "3 [x] pass" in shown


def test_other_ranks_print_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with printing.shown(bars_in_files=True) as on_progress:
        on_progress("task", 1, 2)
        warn("a warning")
    printing.console().print("a table")
    assert capfd.readouterr() == ("", "")


def test_nothing_stays_behind_and_a_verb_outside_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = (list(LOGGER.handlers), LOGGER.level)
    with printing.shown():
        assert LOGGER.level == logging.INFO
    assert (LOGGER.handlers, LOGGER.level) == before
    warn("a warning")
    assert capfd.readouterr() == ("", "")


def test_the_hint_of_a_stop_ends_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mft", "train", "my run.yaml"])
    with pytest.raises(Interrupted) as stop, printing.hint_with_command():
        raise Interrupted("Go on", requeue=True)
    assert stop.value.hint == "Go on with: mft train 'my run.yaml'" and stop.value.exit_code == 75
