"""`mft compare` with a tiny model: real runs, one table, and the same command goes on where it stopped."""

import json
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.training import compare
from mftcoder.cli import main
from tests.forked import finish, start
from tests.forked import run as mft
from tests.integration.test_train_cli import TASKS, write_config, write_tasks


@pytest.fixture
def forked_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are forked from a process that has imported torch. test_verbs.py has a comparison that starts its run itself."""
    numbers = count()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        code = finish(start(tuple(command[3:]), tmp_path / f"output-{next(numbers)}"))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(compare.subprocess, "run", run)


def test_a_comparison_runs_everything_once_and_writes_its_table(
    tmp_path: Path, tiny_llama_dir: Path, forked_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tasks(tmp_path / "data")
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=8, train__eval_steps=2)
    command = ["compare", str(config), "--balancers", "uniform,coba:warmup_steps=2:window=4", "--jobs", "2"]
    main(command)
    run = tmp_path / "run"
    found = json.loads((run / "compare.json").read_text())
    assert [result["name"] for result in found["results"]] == ["uniform", "coba:warmup_steps=2:window=4"]
    for result in found["results"]:
        assert result["best_against_alone"].keys() == TASKS.keys()
    assert {(entry["task"], entry["seed"]) for entry in found["alone"]} == {(task, 0) for task in TASKS}
    (outcome,) = found["runs"]["uniform"]
    assert outcome["steps"] == 8
    assert found["results"][1]["balancing_share"]["mean"] > 0
    for name in ("compare.md", "compare.html"):
        assert "coba" in (run / name).read_text()

    changed_later = json.loads(config.read_text())
    fixed = (run / "uniform-seed0" / "compare.yaml").read_text()
    assert f"max_steps: {changed_later['train']['max_steps']}" in fixed  # a run has its own copy of the config

    capsys.readouterr()
    main(command)
    assert capsys.readouterr().out.count("there already") == 4
    assert json.loads((run / "compare.json").read_text()) == found

    with pytest.raises(SystemExit) as stop:
        main([*command, "train.learning_rate=0.5"])
    assert stop.value.code == 2
    assert "made by another config: train.learning_rate: 0.01 -> 0.5" in capsys.readouterr().err


def test_misfits_of_a_comparison_are_said_before_anything_runs(tmp_path: Path, tiny_llama_dir: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, write_tasks(tmp_path / "data"))
    for arguments, message in (
        (["--balancers", "uniform,cobra"], "balancer.name: unknown balancer 'cobra'. Did you mean 'coba'?"),
        (["--balancers", "coba:tau"], "write name or name:option=value"),
        (["--balancers", "famo:tau=3"], "balancer.tau: unknown key. It is an option of coba; famo takes signal"),
        (["--balancers", ""], "'--balancers': is empty: names, separated by commas, are expected"),
        (["--balancers", "uniform", "data.val_size=0"], "tasks.next: has no validation rows, which a comparison needs"),
        (["train.eval_strategy=no"], "train.eval_strategy: a comparison needs validation"),
    ):
        done = mft("compare", config, *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
