"""`mft data mine`: folders of chat_rounds, counts on the screen and in mining.json, mistakes in a line."""

import json
import subprocess
import sys
from pathlib import Path

CODE = '''
def moved(value, low, high):
    """Return value moved into the range from low to high."""
    if value < low:
        return low
    return high if value > high else value
'''


def mft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mftcoder", *arguments], capture_output=True, text=True, check=False)


def test_a_folder_becomes_task_folders_that_repeat_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for n in range(20):
        (tmp_path / "code" / f"m{n}.py").write_text(CODE.replace("moved", f"moved_{n}"))
    for out in ("a", "b"):
        done = mft("data", "mine", str(tmp_path / "code"), "--out", str(tmp_path / out), "--tasks", "repair_function")
        assert done.returncode == 0, done.stderr
    files = [tmp_path / out / "repair_function" / "train.jsonl" for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    record = json.loads(files[0].read_text().splitlines()[0])
    assert [turn["role"] for turn in record["chat_rounds"]] == ["human", "bot"]
    counts = json.loads((tmp_path / "a" / "mining.json").read_text())
    assert sum(counts["examples"]["repair_function"].values()) == 20


def test_without_a_share_there_is_no_validation_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "m.py").write_text(CODE)
    arguments = ("data", "mine", str(tmp_path / "code"), "--out", str(tmp_path / "out"), "--tasks", "write_docstring")
    assert mft(*arguments, "--valid-share", "0").returncode == 0
    assert [path.name for path in (tmp_path / "out" / "write_docstring").iterdir()] == ["train.jsonl"]


def test_mistakes_end_with_exit_code_2_and_nothing_written(tmp_path: Path) -> None:
    done = mft("data", "mine", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--tasks", "repair_fn")
    assert done.returncode == 2
    assert "unknown task 'repair_fn'. Did you mean 'repair_function'?" in done.stderr
    assert "no such folder" in done.stderr
    assert not (tmp_path / "out").exists()
