"""What `mft assist` reads from a pipe."""

import io
import sys
from pathlib import Path

import pytest

from mftcoder.assistant.assistant import Assistant
from mftcoder.cli.serving.assist import MOST_PIPED, _input
from mftcoder.errors import ConfigError


class NoModel:
    """Nothing is asked."""

    def ask(self, *_: object, **__: object) -> None:
        raise AssertionError

    go_on = ask


@pytest.mark.parametrize("name", ["-", "test.log"])
def test_of_a_long_log_the_end_is_read_and_a_long_diff_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = b"test_a PASSED\n" * (MOST_PIPED // 7) + b"ValueError: negative\n"
    (tmp_path / "test.log").write_bytes(log)
    with Assistant(NoModel(), tmp_path) as assistant:  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log)))
        found = _input(Path(name), assistant, MOST_PIPED)
        assert found.encode() == log[-MOST_PIPED:]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log)))
        with pytest.raises(ConfigError, match="has more than 1 MB"):
            _input(Path(name), assistant)
