"""`mft improve` with a tiny model that knows some answers: killed while it samples, it goes on, repeats nothing, and writes its table."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mftcoder import stages
from mftcoder.app.results.export import export
from mftcoder.app.training.train import train
from mftcoder.cli import main
from mftcoder.config.load import parse_config
from mftcoder.generation.engine import Completion
from mftcoder.generation.journal import GenerationJournal, read_completions
from mftcoder.models.export.source import find_checkpoint
from mftcoder.models.layers.adapters import ADAPTER_WEIGHTS
from mftcoder.reporting.run_folder import read_run
from tests.forked import PATIENCE
from tests.forked import run as mft
from tests.integration.test_killed_parent import _children, _runs
from tests.unit.benchmarks.test_practice import problem, written

NAMES = ("one", "two", "three", "four")
POLICY = (
    "--method=grpo",
    "--samples=8",
    "--temperature=1.5",
    "--updates=2",
    "data.max_length=256",
    "model.dtype=float32",
)


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


def improving(model: Path, exam: Path, out: Path, *more: str) -> list[str]:
    """The words of a command that practises on one half of the exam."""
    places = ["improve", str(model), "--exam", str(exam), "--train-share", "0.5", "--out", str(out)]
    return [*places, "--max-new-tokens", "60", "--device", "cpu", "train.report_to=[]", *more]


def two_claims_each(folder: Path) -> Path:
    """An exam whose problems are tested by two claims, so that a part of an answer's tests can pass."""
    return written(folder, [problem(name, f"{name}.py", test=f"assert {name}(1) == 1\nassert {name}(2) == 2\n") for name in NAMES])  # fmt: skip


def _wait_until(path: Path, lines: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow(reason="eight commands, each in a process of its own")
def test_a_killed_improvement_goes_on_and_repeats_nothing(tmp_path: Path, trained: Path) -> None:
    exam = written(tmp_path, [problem(name, f"{name}.py") for name in NAMES])
    out = tmp_path / "out"
    how = ["--rounds", "1", "--samples", "3", "--temperature", "0.05", "--batch-size", "1"]
    command = improving(trained, exam, out, *how, "train.max_steps=3", "data.max_length=128")
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
    exam, out = two_claims_each(tmp_path), tmp_path / "out"
    done = mft(*improving(trained, exam, out, *POLICY, "--rounds", "2", "--score-every", "2", "--grpo", "beta=0.05"))
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

    assert mft("report", out).returncode == 0
    page = (out / "report.md").read_text()
    assert "## Rounds" in page and "groups without a signal" in page and "exam-write" in page
    assert "## Rewards" in page and "KL of the last step" in page and "| practice |" in page


def die_after(samples: int) -> None:
    """In the command's process: sample the first round here too, and die by SIGKILL when so many of its samples are in the journal."""
    in_a_process_of_its_own, add, written = stages.run_python, GenerationJournal.add, [0]

    def add_and_die(journal: GenerationJournal, completion: Completion, answer: str) -> None:
        add(journal, completion, answer)
        written[0] += 1
        if written[0] == samples:
            os.kill(os.getpid(), signal.SIGKILL)

    def run_python(arguments: list[str], **options: Any) -> tuple[int, str]:
        if arguments[2] == "generate" and any(word.endswith("round-1/samples") for word in arguments):
            GenerationJournal.add = add_and_die  # type: ignore[method-assign]
            main(arguments[2:])
        return in_a_process_of_its_own(arguments, **options)

    stages.run_python = run_python  # type: ignore[assignment]


@pytest.mark.slow(reason="two rounds, one of them twice, of eight commands each, each in a process of its own")
def test_a_policy_killed_while_it_samples_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, trained: Path) -> None:
    exam = two_claims_each(tmp_path)
    words = {
        name: improving(trained, exam, tmp_path / name, *POLICY, "--rounds", "1", "--batch-size", "4")
        for name in ("killed", "whole")
    }
    killed = mft(*words["killed"], first=partial(die_after, 5))
    assert killed.returncode == -signal.SIGKILL
    journal = Path("round-1", "samples", "completions_exam-write_round-1.jsonl")
    assert len(read_completions(tmp_path / "killed" / journal)) == 5
    for command in words.values():
        done = mft(*command)
        assert done.returncode == 0, done.stderr
    folders = [tmp_path / name for name in ("killed", "whole")]
    answers = [sorted(map(json.dumps, read_completions(folder / journal))) for folder in folders]
    assert len(answers[0]) == 16 and answers[0] == answers[1]
    assert len({(folder / "improve.json").read_text() for folder in folders}) == 1
    losses = [
        [(r["step"], r["loss"], r["grad_norm"], r["rewards"]) for r in read_run(folder / "run").train]
        for folder in folders
    ]
    assert losses[0] and losses[0] == losses[1]
    weights = [find_checkpoint(folder / "run", "latest") / "model" / ADAPTER_WEIGHTS for folder in folders]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow(reason="five commands, each in a process of its own")
def test_practice_on_the_small_benchmark_that_no_answer_passes_is_said_and_trains_nothing(
    tmp_path: Path, trained: Path
) -> None:
    """Only passing counts, and four tokens are no answer: all rewards are 0."""
    command = ["improve", str(trained), "--exam", "mini", "--train-share", "0.5", "--out", str(tmp_path / "out")]
    command += ["--method", "grpo", "--reward", "passed=1", "--rounds", "1", "--samples", "2", "--max-new-tokens", "4"]
    done = mft(*command, "--train-limit", "2", "--limit", "2", "--device", "cpu")
    assert done.returncode == 2
    assert "no group of answers has a signal: within each, all rewards are equal" in done.stderr
    (entry,) = json.loads((tmp_path / "out" / "improve.json").read_text())["rounds"]
    assert (entry["problems"], entry["passed"], entry["left_out"]["equal"]) == (2, 0, 2)
    assert not (tmp_path / "out" / "run").exists()
