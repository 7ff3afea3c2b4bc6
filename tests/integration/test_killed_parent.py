"""A command that `mft demo` or `mft compare` runs does not outlive it: it saves and stops when they are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forked import PATIENCE
from tests.integration.test_train_cli import write_config, write_tasks

PARENTS = {
    "demo": "from mftcoder.app.demo import Stage, run_process\nrun_process(Stage('', '', ('train', CONFIG)), capture=False)",
    "compare": "from mftcoder.cli import main\nmain(['compare', CONFIG, '--balancers', 'uniform', '--no-alone'])",
}


slow = pytest.mark.slow(
    reason="two more processes that import torch; both parents give their child the same environment"
)


@pytest.mark.parametrize("parent", ["demo", pytest.param("compare", marks=slow)])
def test_training_saves_and_stops_when_its_parent_is_killed(parent: str, tmp_path: Path, tiny_llama_dir: Path) -> None:
    fields = {"train__max_steps": 100_000, "train__eval_steps": 100_000, "train__save_steps": 100_000}
    config = write_config(tmp_path, tiny_llama_dir, write_tasks(tmp_path / "data"), **fields)
    script = PARENTS[parent].replace("CONFIG", repr(str(config)))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert _within(PATIENCE, lambda: any(file.read_text().count("\n") > 3 for file in tmp_path.rglob("metrics.jsonl")))
    children = _children(process.pid)
    assert children
    process.kill()
    process.wait()
    assert _within(PATIENCE, lambda: not any(map(_runs, children))), [
        os.kill(child, signal.SIGKILL) for child in children
    ]
    assert list(tmp_path.rglob("checkpoints/latest"))


def _within(seconds: float, condition) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
