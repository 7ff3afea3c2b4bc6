"""`mft data filter`, `dedup` and `decontaminate` as commands: one step over files, and mistakes in a line."""

import json
import random
import resource
from pathlib import Path

import pytest

from mftcoder.benchmarks.catalogue import load
from mftcoder.cli import main


def mft(*arguments: object) -> int:
    try:
        main(["data", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": one, "completion": other}) + "\n" for one, other in pairs))
    return path


def kept(folder: Path) -> list[str]:
    return [json.loads(line)["completion"] for line in (folder / "train.jsonl").read_text().splitlines()]


def test_each_step_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))
    problem = load("mini").problems[0]
    good = "```python\nx = 1\n```"
    pairs = [
        ("Write it.", good),
        ("Write it.", f"{good} "),
        ("Write it.", "```python\nx = = 1\n```"),
        (problem.prompt, problem.reference),
    ]
    data = write(tmp_path / "chat.jsonl", *pairs)
    assert mft("filter", data, "--rules", "broken_python", "--out", tmp_path / "a") == 0
    assert mft("dedup", tmp_path / "a" / "chat", "--exact", "--out", tmp_path / "b") == 0
    assert mft("decontaminate", tmp_path / "b" / "chat", "--benchmarks", "mini", "--out", tmp_path / "c") == 0
    assert [len(kept(tmp_path / name / "chat")) for name in "abc"] == [3, 2, 1]
    assert [text.strip() for text in kept(tmp_path / "c" / "chat")] == [good]


def test_mistakes_end_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "chat.jsonl", ("Write it.", "done"))
    assert mft("filter", data, "--rules", "broken_pythn", "--out", tmp_path / "a") == 2
    assert "unknown rule 'broken_pythn'. Did you mean 'broken_python'?" in capsys.readouterr().err
    assert mft("decontaminate", data, "--out", tmp_path / "a") == 2
    assert "give `benchmarks` or `files`" in capsys.readouterr().err
    assert mft("dedup", data, data, "--out", tmp_path / "a") == 2
    assert "two tasks are named chat; a recipe can name them" in capsys.readouterr().err


def test_a_command_that_leaves_no_record_writes_its_folder_and_ends_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "chat.jsonl", ("Write it.", "```python\nx = = 1\n```"))
    assert mft("filter", data, "--rules", "broken_python", "--out", tmp_path / "a") == 2
    assert f"{tmp_path / 'a'}: nothing is left to train on" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "dropped.jsonl").read_text())["rule"] == "broken_python"


@pytest.mark.parametrize("step", [("filter", "--rules", "longest_line"), ("dedup",)])
def test_a_file_that_may_not_grow_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: tuple[str, ...]
) -> None:
    """The kept records are the first file that is too large for the filter, the n-grams that numpy writes for dedup."""
    pytest.importorskip("rensa")
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))
    source = random.Random(1)
    texts = [" ".join(f"{source.randrange(1000):03}" for _ in range(200)) for _ in range(300)]
    data = write(tmp_path / "chat.jsonl", *(("Write it.", text) for text in texts))
    command = (step[0], data, *step[1:], "--out", tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000 if step[0] == "filter" else 350_000, before[1]))
    try:
        assert mft(*command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / '.a.work'}")
    assert line.endswith(
        (": File too large. Make room or choose another folder.", "in full. Make room or choose another folder.")
    )
    assert not (tmp_path / "a").exists()
    assert mft(*command) == 0
    assert len(kept(tmp_path / "a" / "chat")) == 300


def test_a_link_that_leads_back_to_itself_is_named_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    assert mft("filter", tmp_path / "a.jsonl", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "a.jsonl" in line
    assert line.endswith("is a link that leads back to itself")
