"""Verbs tell their lines through logging, on rank 0, and nothing is printed until somebody asks for it."""

import logging
import subprocess
import sys

import pytest

from mftcoder.log import say, say_progress, warn


def test_without_any_logging_set_up_not_even_a_warning_is_printed() -> None:
    code = "from mftcoder.log import say, warn; say('a line'); warn('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_lines_carry_their_level_and_the_place_they_come_from(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mftcoder")
    say("50% done")
    warn("a warning")
    say_progress("step 1/2")
    found = [(record.name, record.levelname, record.getMessage(), record.filename) for record in caplog.records]
    assert found == [
        ("mftcoder", "INFO", "50% done", "test_log.py"),
        ("mftcoder", "WARNING", "a warning", "test_log.py"),
        ("mftcoder.progress", "INFO", "step 1/2", "test_log.py"),
    ]


def test_other_ranks_tell_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "mftcoder")
    monkeypatch.setenv("RANK", "1")
    warn("a warning")
    assert not caplog.records
