"""What `mft assist` reads from a pipe."""

import io
import sys
from pathlib import Path

import pytest

from mftcoder.assistant.assistant import Assistant
from mftcoder.cli.serving.assist import MOST_PIPED, _input


class NoModel:
    """Nothing is asked."""

    def ask(self, *_: object, **__: object) -> None:
        raise AssertionError

    go_on = ask


def test_of_a_long_log_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = b"test_a PASSED\n" * (MOST_PIPED // 7) + b"ValueError: negative\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log)))
    with Assistant(NoModel(), tmp_path) as assistant:  # type: ignore[arg-type]
        found = _input(Path("-"), assistant)
    assert found.endswith("ValueError: negative\n")
    assert len(found) == MOST_PIPED
