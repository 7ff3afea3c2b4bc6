"""`mft improve` with a tiny model that knows some answers: killed while it samples, it goes on, repeats nothing, and writes its table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mftcoder.app.results.export import export
from mftcoder.app.training.train import train
from mftcoder.config.load import parse_config
from tests.forked import PATIENCE
from tests.forked import run as mft
from tests.integration.test_killed_parent import _children, _runs
from tests.unit.benchmarks.test_practice import problem, written

NAMES = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """A model that was trained on the answers to all problems until it knows them."""
    folder = tmp_path_factory.mktemp("trained")
    records = [
        {"messages": [{"role": "user", "content": f"Write {name}."}, {"role": "assistant", "content": f"```python\ndef {name}(x):\n    return x\n```"}]}
        for name in NAMES
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    raw = {
        "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
        "adapter": {"type": "full"},
        "tasks": {"write": {"files": str(folder / "data.jsonl")}},
        "data": {"max_length": 128, "val_size": 0.0, "cache_dir": str(folder / "cache")},
        "train": {"max_steps": 120, "learning_rate": 0.01, "eval_strategy": "no", "report_to": []},
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }
    train(parse_config(raw, origin="test"))
    export(folder / "run", folder / "model")
    return folder / "model"


def _wait_until(path: Path, lines: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow(reason="eight commands, each in a process of its own")
def test_a_killed_improvement_goes_on_and_repeats_nothing(tmp_path: Path, trained: Path) -> None:
    exam = written(tmp_path, [problem(name, f"{name}.py") for name in NAMES])
    out = tmp_path / "out"
    command = ["improve", str(trained), "--exam", str(exam), "--train-share", "0.5", "--out", str(out), "--rounds", "1"]
    command += [
        "--samples",
        "3",
        "--temperature",
        "0.05",
        "--max-new-tokens",
        "60",
        "--device",
        "cpu",
        "--batch-size",
        "1",
    ]
    command += ["train.max_steps=3", "data.max_length=128", "train.report_to=[]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mftcoder", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = out / "round-1" / "samples" / "completions_exam-write_round-1.jsonl"
    _wait_until(journal, 2)  # the settings and one sample
    children = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(map(_runs, children)):
        time.sleep(0.05)
    before = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    done = {json.loads(line)["stage"] for line in (out / "stages.jsonl").read_text().splitlines()[1:]}

    again = mft(*command)
    assert again.returncode == 0, again.stderr
    assert journal.read_bytes().splitlines(keepends=True)[: len(before)] == before
    assert "base: answers to the exam" in done and all(f"{stage}: done before" in again.stdout for stage in done)

    found = json.loads((out / "improve.json").read_text())
    (entry,) = found["rounds"]
    assert (entry["problems"], entry["rollouts"]) == (2, 6)
    assert (
        sum(entry["solved"].values()) == 2 and entry["passed"] >= 3 * entry["solved"]["all"] + entry["solved"]["some"]
    )
    assert 1 <= entry["kept"] == entry["new"] <= 4
    assert found["scores"]["exam-write"].keys() == {"base", "round-1"}
    assert found["scores"]["exam-write"]["base"][0]["problems"] == 2
    (change,) = found["changes"]
    assert change["models"] == ["base", "round-1"] and 0 <= change["p"] <= 1
    trained_on = [
        json.loads(line) for line in (out / "round-1" / "data" / "write" / "train.jsonl").read_text().splitlines()
    ]
    scored = {
        record["task_id"]
        for record in map(json.loads, (out / "problems" / "exam" / "exam.jsonl").read_text().splitlines())
    }
    assert scored.isdisjoint(record["problem_id"] for record in trained_on)

    third = mft(*command)
    assert third.returncode == 0 and "$ mft" not in third.stdout
    assert json.loads((out / "improve.json").read_text()) == found


@pytest.mark.slow(reason="a dozen commands, each in a process of its own")
def test_a_policy_goes_on_in_one_run_over_its_rounds(tmp_path: Path, trained: Path) -> None:
    """Two rounds of grpo of two updates each, sampled so wildly that answers of a group differ."""
    exam = written(tmp_path, [problem(name, f"{name}.py", test=f"assert {name}(1) == 1\nassert {name}(2) == 2\n") for name in NAMES])  # fmt: skip
    out = tmp_path / "out"
    command = ["improve", str(trained), "--exam", str(exam), "--train-share", "0.5", "--out", str(out), "--rounds", "2"]
    command += [
        "--method",
        "grpo",
        "--samples",
        "8",
        "--temperature",
        "1.5",
        "--max-new-tokens",
        "60",
        "--device",
        "cpu",
    ]
    command += ["--updates", "2", "--score-every", "2", "--grpo", "beta=0.05"]
    done = mft(*command, "data.max_length=256", "train.report_to=[]", "model.dtype=float32")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "improve.json").read_text())
    assert found["scores"]["exam-write"].keys() == {"base", "round-2"}
    assert [entry["rollouts"] for entry in found["rounds"]] == [16, 16]
    assert all(0 < entry["mean_reward"] < 1 and entry["kept"] for entry in found["rounds"])
    records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    rewards = [record["rewards"]["practice"] for record in steps]
    assert rewards[0]["divergence"] < 1e-9 and rewards[0]["divergence"] < rewards[2]["divergence"]
    assert rewards[0]["clipped"] == rewards[2]["clipped"] == 0  # the first update of a round is on-policy
    assert len(list((out / "run" / "sampled").glob("*.npz"))) == 2
