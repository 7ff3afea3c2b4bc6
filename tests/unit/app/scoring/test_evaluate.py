"""The command line of an evaluation in a container."""

from pathlib import Path

from mftcoder.app.scoring.evaluate import container_command
from mftcoder.app.scoring.options import EvaluateOptions
from mftcoder.cache import cache_root


def test_a_container_gets_the_answers_read_only_and_the_key_of_the_journal(tmp_path: Path) -> None:
    """Without the key a stopped evaluation would start again from its beginning."""
    answers = tmp_path / "generations_mini_m.json"
    answers.write_text("[]")
    command = container_command("podman", [answers], EvaluateOptions(out=tmp_path / "out", limit=3))
    volumes = [part.removeprefix("--volume=") for part in command if part.startswith("--volume=")]
    assert volumes == [
        f"{answers}:/in/generations_mini_m.json:ro",
        f"{tmp_path / 'out'}:/out:rw",
        f"{cache_root() / 'journal.key'}:/opt/mftcoder/cache/journal.key:ro",
    ]
    assert command[-2:] == ["--limit", "3"]
