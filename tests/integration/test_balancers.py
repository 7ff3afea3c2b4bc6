"""Balancers in real runs: every method resumes after kill -9, the split of a step does not matter, misfits are one line."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mftcoder.cli import main
from mftcoder.config.load import load_config
from mftcoder.data.loader import TrainLoader
from mftcoder.data.store import prepare
from tests.integration.test_train_cli import TASKS, metrics, mft, same_bits, weights, write_config, write_tasks

METHODS = {
    "coba": ["balancer={name: coba, warmup_steps: 4, window: 8}"],
    "coba released": [
        "balancer={name: coba, warmup_steps: 3, window: 6, variant: released}",
        "train.eval_strategy=epoch",
    ],
    "coba seldom": ["balancer={name: coba, warmup_steps: 4, window: 12, update_interval: 4, val_batches: 2}"],
    "famo": ["balancer={name: famo, variant: released}"],
    "famo starred": ["balancer={name: famo, signal: validation}"],
    "dwa": ["balancer={name: dwa, update_interval: 3}"],
    "lbtw": ["balancer=lbtw"],
    "lbtw starred": ["balancer={name: lbtw, signal: validation}"],
    "gradnorm": ["balancer={name: gradnorm, update_interval: 3}"],
    "gradnorm starred": ["balancer={name: gradnorm, update_interval: 3, signal: validation}"],
    "uncertainty": ["balancer=uncertainty"],
    "random": ["balancer=random"],
    "selfpaced": ["balancer={name: selfpaced, warmup_steps: 3, window: 6}"],
    "pace": ["balancer={name: pace, warmup_steps: 3, val_share: 0.3, gain: 1}"],
}
FEW = ("coba", "famo", "gradnorm", "pace")
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("balanced"))


def applied(run: Path) -> list[dict[str, float]]:
    """The weights that each step was trained with."""
    return [record["weights"] for record in metrics(run) if record["kind"] == "train"]


@pytest.fixture(scope="module")
def start() -> Callable[..., BaseProcess]:
    """`start("train", config, ...)`: the command in a process of its own, forked from a server that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mftcoder.app.train", "mftcoder.cli", "peft"])

    def start(*arguments: object) -> BaseProcess:
        process = context.Process(target=main, args=([str(argument) for argument in arguments],))
        process.start()
        return process

    return start


def finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def write(folder: Path, model: Path, data: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_config(folder, model, data, **{"train__max_steps": STEPS, "train__eval_strategy": "no", **fields})


def kill_past_step_5(process: BaseProcess, run: Path) -> None:
    """kill -9 as soon as step 5 is in the metrics."""
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and '"step": 5' in (run / "metrics.jsonl").read_text():
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert 5 <= len(applied(run)) < STEPS


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_kill_resumes_to_the_same_weights_and_parameters(
    method: str, tmp_path: Path, tiny_llama_dir: Path, data: Path, start: Callable[..., BaseProcess]
) -> None:
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    finish(start("train", write(tmp_path / "whole", tiny_llama_dir, data), *METHODS[method]))
    config = write(tmp_path / "killed", tiny_llama_dir, data)
    kill_past_step_5(start("train", config, *METHODS[method]), killed)
    finish(start("train", config, *METHODS[method]))
    assert applied(whole) == applied(killed)
    assert len({tuple(step.values()) for step in applied(whole)}) > 1, "the method never moved the weights"
    assert same_bits(weights(whole), weights(killed))


@pytest.mark.parametrize("method", FEW)
def test_weights_do_not_depend_on_the_micro_batches(
    method: str, tmp_path: Path, tiny_llama_dir: Path, data: Path, start: Callable[..., BaseProcess]
) -> None:
    trajectories = []
    for rows, accumulation in ((4, 1), (1, 4)):
        config = write(
            tmp_path / str(rows), tiny_llama_dir, data,
            train__per_device_train_batch_size=rows, train__gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        finish(start("train", config, *METHODS[method], "adapter.lora_dropout=0"))
        trajectories.append([list(step.values()) for step in applied(config.parent / "run")])
    assert trajectories[0] == [pytest.approx(step, abs=1e-6) for step in trajectories[1]]


LONG_WARMUP = ["balancer.val_batches=99", "balancer.warmup_steps=10", "balancer.window=12"]
"""Slopes over ten points and more: over four, the layouts' rounding errors in fp32 are 2e-6 of a weight."""


def rows_of(config_path: Path) -> int:
    """Rows of the whole data set in this layout."""
    config = load_config(config_path)
    return round(TrainLoader(prepare(config), config).steps_per_epoch)


@pytest.mark.parametrize("method", ["coba", "famo"])
def test_weights_do_not_depend_on_packing(
    method: str, tmp_path: Path, tiny_llama_dir: Path, start: Callable[..., BaseProcess]
) -> None:
    """Each step is the whole data set, and coba measures the whole validation set, so all layouts see the same samples."""
    small = write_tasks(tmp_path / "small", rows=12)
    everything = METHODS[method] + (LONG_WARMUP if method == "coba" else [])
    trajectories = []
    for number, layout in enumerate((("best_fit", "dynamic"), ("none", "dynamic"), ("none", "max_length"))):
        config = write(
            tmp_path / str(number), tiny_llama_dir, small, data__packing=layout[0], data__padding=layout[1],
            train__gradient_accumulation_steps=1, train__max_steps=13,
        )  # fmt: skip
        whole = f"train.gradient_accumulation_steps={rows_of(config)}"
        finish(start("train", config, *everything, whole, "adapter.lora_dropout=0"))
        trajectories.append([list(step.values()) for step in applied(config.parent / "run")])
    assert len(trajectories[0]) == 13 and trajectories[0][-1] != trajectories[0][0]
    # CoBa's weights come from slopes: small differences of losses, which float32 rounds to some 1e-7 of their size.
    tolerance = 2e-5 if method == "coba" else 1e-6
    for other in trajectories[1:]:
        assert other == [pytest.approx(step, abs=tolerance) for step in trajectories[0]]


def test_weights_and_slopes_are_in_metrics_and_tensorboard(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, start: Callable[..., BaseProcess]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write(tmp_path / "seen", tiny_llama_dir, data)
    finish(start("train", config, *METHODS["coba"], "train.report_to=tensorboard"))
    run = config.parent / "run"
    balance = [record for record in metrics(run) if record["kind"] == "balance"]
    assert [record["step"] for record in balance] == list(range(1, STEPS + 1))
    last = balance[-1]
    assert last["signals"]["slope"].keys() == last["weights"].keys() == TASKS.keys()
    assert last["validation_rows"] == len(TASKS) and last["seconds"] > 0
    assert sum(last["weights"].values()) == pytest.approx(1.0)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {"balance/slope/next", "balance/weight/next", "train/weight/squares"} <= set(board.Tags()["scalars"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["balancer=coba", "data.val_size=0"], "tasks.next: has no validation rows, which balancer 'coba' needs"),
        (
            ["balancer={name: coba, window: 2, warmup_steps: 9}"],
            "balancer: window (2) is shorter than warmup_steps (9)",
        ),
        (
            ["balancer={name: coba, update_interval: 0}"],
            "balancer.update_interval: Input should be greater than 0, not 0",
        ),
        (["tasks.next.weight=-1"], "tasks.next.weight: Input should be greater than or equal to 0, not -1"),
        (["tasks.next.weight=.nan"], "tasks.next.weight: Input should be a finite number, not nan"),
        (["tasks.previous.weight=2"], "tasks.previous"),
    ],
)
def test_misfits_are_said_before_any_model_is_loaded(
    overrides: list[str], line: str, tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    folder = tmp_path / "model-without-weights"
    shutil.copytree(tiny_llama_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({"unknown": np.zeros(1, np.float32)}, folder / "model.safetensors")  # loading it would be an error
    done = mft("train", write_config(tmp_path, folder, data), *overrides)
    assert done.returncode == 2
    assert line in done.stderr and "Traceback" not in done.stderr and "safetensors" not in done.stderr
    assert line in mft("validate", tmp_path / "config.json", *overrides).stderr


def test_a_loss_that_is_not_finite_names_task_step_and_sample_or_is_counted(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    wild = {"train__learning_rate": 1e30, "train__max_steps": 8, "train__eval_strategy": "no", "train__save_steps": 1}
    config = write_config(tmp_path, tiny_llama_dir, data, **wild)
    stopped = mft("train", config, "train.max_grad_norm=null")
    assert stopped.returncode == 2
    (error,) = [line for line in stopped.stderr.splitlines() if line.startswith("error:")]
    step = int(error.split("step ")[1].split(":")[0])
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step-{step - 1:08d}"
    assert "the loss of task '" in error and ".jsonl:" in error
    went_on = mft("train", config, "train.max_grad_norm=null", "train.on_nonfinite=skip", "--allow-changes")
    assert went_on.returncode == 0, went_on.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dropped_steps"] == 8 - step + 1
