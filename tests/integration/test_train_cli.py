"""`mft train` through the real command: it learns, it resumes to the last bit, it says what is wrong."""

import importlib.util
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.forked import finish, start
from tests.forked import run as mft

TASKS = {"squares": "What is {n} squared?", "next": "Which number follows {n}?"}


def write_tasks(folder: Path, rows: int = 60) -> Path:
    for name, question in TASKS.items():
        (folder / name).mkdir(parents=True)
        with (folder / name / "part-0.jsonl").open("w") as file:
            for n in range(rows):
                answer = str(n * n if name == "squares" else n + 1)
                messages = [{"role": "human", "content": question.format(n=n)}, {"role": "bot", "content": answer}]
                file.write(json.dumps({"id": n, "chat_rounds": messages}) + "\n")
    return folder


def write_config(folder: Path, model: Path, data: Path, **overrides: Any) -> Path:
    config = {
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "adapter": {"type": "lora", "lora_rank": 4, "lora_dropout": 0.1},
        "tasks": {name: str(data / name) for name in TASKS},
        "data": {"max_length": 128, "val_size": 0.2, "cache_dir": str(folder / "cache")},
        "train": {
            "max_steps": 6, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.01,
            "eval_steps": 3, "save_steps": 2, "report_to": [],
        },
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    for dotted, value in overrides.items():
        section, field = dotted.split("__")
        config[section][field] = value  # type: ignore[index]
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Any]:
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    (file,) = (latest / "model").glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_run_learns_every_task_and_writes_its_folder(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, adapter: str
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, adapter__type=adapter, train__max_steps=12)
    done = mft("train", config)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["stopped_because"] == "max_steps"
    for task in TASKS:
        assert summary["validation"]["last"][task] < summary["validation"]["first"][task]
    for name in ("config.yaml", "versions.json", "data.json"):
        assert (run / name).stat().st_size > 20
    train = [record for record in metrics(run) if record["kind"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 13))
    assert {record["step"] for record in metrics(run) if record["kind"] == "validation"} == {0, 3, 6, 9, 12}
    assert train[0]["tokens"].keys() == TASKS.keys() and train[0]["tokens_per_second"] > 0


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="no torchao")
def test_full_fine_tuning_in_fp8_learns_goes_on_and_says_that_it_is_emulated(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    fields = {"adapter__type": "full", "model__dtype": "bfloat16", "train__fp8_recipe": "rowwise"}
    config = write_config(tmp_path, tiny_llama_dir, data, **fields, train__max_steps=8)
    assert mft("train", config, "train.max_steps=4", "train.lr_scheduler_type=constant").returncode == 0
    done = mft("train", config, "train.lr_scheduler_type=constant", "--allow-changes")
    assert done.returncode == 0, done.stderr
    assert "products in fp8 are emulated, at no gain in speed: a CPU has no fp8 products" in done.stdout
    assert "train.fp8_recipe without train.torch_compile" in done.stdout
    validation = json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]
    assert all(validation["last"][task] < validation["first"][task] for task in TASKS)
    plan = mft("validate", config, f"output_dir={tmp_path / 'other'}")
    assert "fp8 (torchao, rowwise), emulated: the same numbers, no gain in speed" in plan.stdout


def test_metrics_say_what_the_objective_was(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    """task_token with both tasks present: the objective is the weighted mean of the task means."""
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=2)
    assert mft("train", config, "tasks.squares.weight=3").returncode == 0
    for record in (record for record in metrics(tmp_path / "run") if record["kind"] == "train"):
        expected = 0.75 * record["losses"]["squares"] + 0.25 * record["losses"]["next"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_layouts_of_the_same_step_have_the_same_loss(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """With a data set that is one step, packing, dynamic and padding hold the same samples in it."""
    small = write_tasks(tmp_path / "data", rows=12)
    losses = []
    for number, layout in enumerate((("best_fit", "dynamic"), ("none", "dynamic"), ("none", "max_length"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = write_config(
            folder, tiny_llama_dir, small, data__packing=layout[0], data__padding=layout[1], data__val_size=0,
            train__gradient_accumulation_steps=64, train__max_steps=None, train__num_train_epochs=1, train__eval_strategy="no",
            adapter__lora_dropout=0.0,
        )  # fmt: skip
        done = mft("train", config)
        assert done.returncode == 0, done.stderr
        (record,) = metrics(folder / "run")
        losses.append(record["loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def run_with_kills(config: Path, run: Path, kills: list[float], *overrides: str) -> None:
    """Start the run, kill -9 it after so many seconds past its first step, and let the last one finish."""
    for after in kills:
        before = len(metrics_if_whole(run))
        process = start(("train", config, *overrides), run.with_name("killed"))
        while process.is_alive() and len(metrics_if_whole(run)) <= before:
            time.sleep(0.01)
        time.sleep(after)
        process.kill()
        process.join()
    done = mft("train", config, *overrides)
    assert done.returncode == 0, done.stderr


def metrics_if_whole(run: Path) -> list[str]:
    """The lines of metrics.jsonl so far, the last of which may be half written."""
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = write_config(tmp_path / "whole", tiny_llama_dir, data, train__max_steps=20)
    assert mft("train", whole).returncode == 0
    killed = write_config(tmp_path / "killed", tiny_llama_dir, data, train__max_steps=20)
    moments = random.Random(os.getpid())
    run_with_kills(killed, tmp_path / "killed" / "run", [moments.uniform(0, 0.15) for _ in range(3)])
    assert same_bits(weights(tmp_path / "whole" / "run"), weights(tmp_path / "killed" / "run"))
    records = [
        [
            {k: v for k, v in record.items() if k not in ("time", "seconds", "tokens_per_second")}
            for record in metrics(run)
        ]
        for run in (tmp_path / "whole" / "run", tmp_path / "killed" / "run")
    ]
    assert records[0] == records[1]


@pytest.mark.slow(reason="two more processes import torch; the unit test of the loader compares the rows of workers")
def test_the_number_of_dataloader_workers_changes_nothing(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    for name in ("none", "two"):
        (tmp_path / name).mkdir()
    none = write_config(tmp_path / "none", tiny_llama_dir, data)
    two = write_config(tmp_path / "two", tiny_llama_dir, data, train__dataloader_num_workers=2)
    assert mft("train", none).returncode == 0
    assert mft("train", two, "train.max_steps=6").returncode == 0
    assert same_bits(weights(tmp_path / "none" / "run"), weights(tmp_path / "two" / "run"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=100_000, train__save_steps=100_000)
    process = start(("train", config), tmp_path / "stopped")
    while process.is_alive() and len(metrics_if_whole(tmp_path / "run")) < 3:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGINT)
    assert finish(process) == 130
    errors = (tmp_path / "stopped.err").read_text()
    assert f"Go on with: mft train {config}" in errors and "Traceback" not in errors
    assert weights(tmp_path / "run")


def test_another_config_is_refused_with_its_differing_fields(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=2)
    assert mft("train", config).returncode == 0
    refused = mft("train", config, "train.learning_rate=0.5", "train.max_steps=3")
    assert refused.returncode == 2
    assert "train.learning_rate: 0.01 -> 0.5" in refused.stderr and "--allow-changes" in refused.stderr
    allowed = mft("train", config, "train.max_steps=3", "--allow-changes")
    assert allowed.returncode == 0 and "going on from" in allowed.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3


def test_a_changed_task_weight_acts_from_the_next_step(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=2)
    assert mft("train", config).returncode == 0
    assert mft("train", config, "train.max_steps=3", "tasks.squares.weight=3", "--allow-changes").returncode == 0
    weights = [record["weights"]["squares"] for record in metrics(tmp_path / "run") if record["kind"] == "train"]
    assert weights == [0.5, 0.5, 0.75]


def test_what_the_checkpoint_has_no_state_of_cannot_be_changed(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=2)
    assert mft("train", config).returncode == 0
    refused = mft("train", config, "train.max_steps=3", "balancer.name=pace", "--allow-changes")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "balancer.name: 'uniform' -> 'pace'" in refused.stderr and "another output_dir" in refused.stderr


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__max_steps=4)
    assert mft("train", config).returncode == 0
    expected = weights(tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "step-00000004" / "optimizer" / "state.pt"
    state.write_bytes(state.read_bytes()[:-10])
    again = mft("train", config)
    assert again.returncode == 0, again.stderr
    assert "step-00000004: damaged checkpoint" in again.stdout and "step-00000003" in again.stdout
    assert same_bits(weights(tmp_path / "run"), expected)


def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    """A rate that moves no weight: the validations after steps 2 and 4 are no better than the one before the first step."""
    config = write_config(
        tmp_path, tiny_llama_dir, data, train__learning_rate=1e-30, train__max_steps=40, train__eval_steps=2,
        train__early_stopping_patience=2,
    )  # fmt: skip
    for _ in range(2):  # started again, the run is finished and takes no further step
        assert mft("train", config).returncode == 0
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["stopped_because"], summary["steps"], summary["best"]["step"]) == ("early_stopping", 4, 0)
        assert max(record["step"] for record in metrics(tmp_path / "run")) == 4


def test_early_stopping_without_validation_data_is_refused(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, data__val_size=0, train__early_stopping_patience=2)
    for command in ("train", "validate"):
        refused = mft(command, config)
        assert refused.returncode == 2
        assert "train.early_stopping_patience: no task has validation rows" in refused.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    import fcntl

    config = write_config(tmp_path, tiny_llama_dir, data)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = mft("train", config)
    assert refused.returncode == 2 and "another run is writing there" in refused.stderr


def test_validate_prints_the_plan_and_all_problems_at_once(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data)
    good = mft("validate", config)
    assert good.returncode == 0, good.stderr
    assert "6 of 2 rows" in good.stdout and "memory" in good.stdout
    (tmp_path / "blocked").write_text("")
    bad = mft("validate", config, "tasks.next.path=/no/such/folder", f"output_dir={tmp_path / 'blocked' / 'run'}")
    assert bad.returncode == 2
    assert "/no/such/folder" in bad.stderr and "output_dir" in bad.stderr


@pytest.mark.slow(reason="looks for a compiler for half a minute")
def test_without_a_compiler_layers_run_uncompiled_and_a_line_says_so(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, data, train__torch_compile=True, train__max_steps=2)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    done = mft("train", config)
    assert done.returncode == 0, done.stderr
    assert "train.torch_compile: no C++ compiler is found" in done.stdout and "run uncompiled" in done.stdout
    assert len([record for record in metrics(tmp_path / "run") if record["kind"] == "train"]) == 2
