"""What no file system, no 64 bits and no text can hold: every command answers in lines and exit code 2, never with a traceback."""

import json
from pathlib import Path

import pytest

from mftcoder.cli.group import main

LONG_PART, LONG_PATH, NO_HOME, HALF = "a" * 256, "/" + "b/" * 3000, "~nobody-here/x", "x\udcff"
BIG, INFINITE = str(10**30), "1e400"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    """Exit code and lines of standard error; any other exception is the failure of a test."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err.splitlines()


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "generations_mini_m.json"
    path.write_text(json.dumps([["    return number * 2\n"]]))
    return path


@pytest.mark.parametrize("out", ["FILE", "FILE/below"])
@pytest.mark.parametrize(
    "words",
    [
        "generate MODEL --task mini --limit 1 --max-new-tokens 1 --out OUT", "evaluate ANSWERS --limit 1 --out OUT",
        "validate CONFIG output_dir=OUT", "train CONFIG output_dir=OUT", "train CONFIG data.cache_dir=OUT", "data mine CODE --out OUT",
    ],
)  # fmt: skip
def test_a_file_in_the_place_of_a_folder_is_answered_in_a_line(
    tmp_path: Path, tiny_llama_dir: Path, answers: Path, capsys: pytest.CaptureFixture[str], words: str, out: str
) -> None:
    (tmp_path / "file").write_text("")
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 4
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"}, "tasks": {"a": str(tmp_path / "data.jsonl")},
        "data": {"max_length": 64, "cache_dir": str(tmp_path / "cache")}, "train": {"max_steps": 1, "report_to": []},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = tmp_path / "code"
    code.mkdir()
    (code / "one.py").write_text("def double(x):\n    return 2 * x\n")
    given = {"CONFIG": tmp_path / "config.json", "MODEL": tiny_llama_dir, "ANSWERS": answers, "CODE": code}
    place = out.replace("FILE", str(tmp_path / "file"))
    ended, lines = run(capsys, *[str(given.get(word, word)).replace("OUT", place) for word in words.split()])
    assert ended == 2, lines
    assert any(line.startswith(("error: ", "Error: ")) and "file" in line for line in lines), lines
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", [LONG_PART, LONG_PATH, NO_HOME, HALF], ids=["part", "path", "home", "half"])
@pytest.mark.parametrize(
    "words",
    [
        "validate NAME", "train NAME", "prepare NAME", "inspect NAME", "compare NAME", "convert-config NAME",
        "validate CONFIG output_dir=NAME", "validate CONFIG model=NAME", "validate CONFIG tasks.a.path=NAME",
        "generate NAME --task mini", "generate MODEL --task mini --limit 1 --max-new-tokens 1 --out NAME",
        "generate MODEL --task mini --limit 1 --max-new-tokens 1 --name NAME", "generate MODEL --task mini --data-dir NAME",
        "generate MODEL --task mini --device NAME", "generate MODEL --task NAME", "generate MODEL --preset NAME",
        "evaluate NAME", "evaluate ANSWERS --limit 1 --out NAME", "evaluate ANSWERS --limit 1 --data-dir NAME",
        "benchmarks --data-dir NAME", "submit NAME", "submit --check NAME", "export NAME OUT", "export --verify NAME", "report NAME",
        "data mine NAME --out OUT",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_answered_in_a_line(
    tmp_path: Path,
    tiny_llama_dir: Path,
    answers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": "m", "tasks": {"a": "data"}, "output_dir": "run"}))
    given = {"CONFIG": "config.json", "MODEL": tiny_llama_dir, "ANSWERS": answers, "OUT": "out"}
    typed = [str(given.get(word, word)).replace("NAME", name) for word in words.split()]
    code, lines = run(capsys, *typed)
    if name is NO_HOME and words.endswith(("--name NAME", "--out NAME")):
        assert code == 0  # a strange name, and yet one that a file can have
    else:
        assert code == 2, lines
        assert any(line.startswith(("error: ", "Error: ")) for line in lines), lines
    assert not any("Traceback" in line or len(line) > 2100 for line in lines)


@pytest.mark.parametrize("number", [BIG, INFINITE, "nan", "-1e400"])
@pytest.mark.parametrize(
    "words",
    [
        "generate MODEL --task mini --temperature", "generate MODEL --task mini --top-p", "generate MODEL --task mini --seed",
        "generate MODEL --task mini --max-new-tokens", "generate MODEL --task mini --max-length", "generate MODEL --task mini --batch-size",
        "evaluate ANSWERS --limit", "evaluate ANSWERS --limit 1 --timeout", "evaluate ANSWERS --limit 1 --memory-mb",
        "evaluate ANSWERS --limit 1 --workers", "evaluate ANSWERS --limit 1 -k", "demo --minutes", "train x.yaml --nproc",
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_answered_in_a_line(
    tiny_llama_dir: Path, answers: Path, capsys: pytest.CaptureFixture[str], words: str, number: str
) -> None:
    given = {"MODEL": tiny_llama_dir, "ANSWERS": answers}
    code, lines = run(capsys, *(given.get(word, word) for word in words.split()), number)
    assert code == 2, lines
    assert any(line.startswith(("error: ", "Error: ")) for line in lines), lines
    assert not any("Traceback" in line for line in lines)
