"""Balancers in real runs: every method resumes after kill -9, the split of a step does not matter, misfits are one line."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.training import train as app
from mftcoder.config.load import load_config
from mftcoder.data.batches.loader import TrainLoader
from mftcoder.data.prepared.store import prepare
from mftcoder.registry import BALANCERS
from mftcoder.training import loop
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.metrics import MetricsLog
from tests.forked import finish, start
from tests.forked import run as mft
from tests.integration.test_train_cli import TASKS, metrics, same_bits, weights, write_config, write_tasks

METHODS = {name: [f"balancer={name}"] for name in BALANCERS.names() if name != "uniform"} | {
    "coba": ["balancer={name: coba, warmup_steps: 4, window: 8}"],
    "coba released": [
        "balancer={name: coba, warmup_steps: 3, window: 6, variant: released}",
        "train.eval_strategy=epoch",
    ],
    "coba seldom": ["balancer={name: coba, warmup_steps: 4, window: 12, update_interval: 4, val_batches: 2}"],
    "famo": ["balancer={name: famo, variant: released}"],
    "famo starred": ["balancer={name: famo, signal: validation}"],
    "dwa": ["balancer={name: dwa, update_interval: 3}"],
    "lbtw starred": ["balancer={name: lbtw, signal: validation}"],
    "gradnorm": ["balancer={name: gradnorm, update_interval: 3}"],
    "gradnorm starred": ["balancer={name: gradnorm, update_interval: 3, signal: validation}"],
    "selfpaced": ["balancer={name: selfpaced, warmup_steps: 3, window: 6}"],
    "pace": ["balancer={name: pace, warmup_steps: 3, val_share: 0.3, gain: 1}"],
}
"""Every method, those whose defaults do not move the weights within STEPS with options of their own; and some variants."""
FEW = ("coba", "gradnorm", "pace")
slow = pytest.mark.slow(reason="three runs for each method; the few are one of each kind")
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("balanced"))


def applied(run: Path) -> list[dict[str, float]]:
    """The weights that each step was trained with."""
    return [record["weights"] for record in metrics(run) if record["kind"] == "train"]


def train(config: Path, *arguments: str) -> None:
    done = mft("train", config, *arguments)
    assert done.returncode == 0, done.stderr


def write(folder: Path, model: Path, data: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_config(folder, model, data, **{"train__max_steps": STEPS, "train__eval_strategy": "no", **fields})


def be_killed_after_step_5() -> None:
    """Let this process end by kill -9 as soon as step 5 is in the metrics."""
    log = MetricsLog.log

    def log_and_die(metrics: MetricsLog, record: dict[str, Any]) -> None:
        log(metrics, record)
        if (record["kind"], record["step"]) == ("train", 5):
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsLog.log = log_and_die  # type: ignore[method-assign]


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name in FEW else slow) for name in METHODS])
def test_a_kill_resumes_to_the_same_weights_and_parameters(
    method: str, tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    train(write(tmp_path / "whole", tiny_llama_dir, data), *METHODS[method])
    config = write(tmp_path / "killed", tiny_llama_dir, data)
    process = start(("train", config, *METHODS[method]), tmp_path / "killed" / "output", first=be_killed_after_step_5)
    assert finish(process) == -signal.SIGKILL and len(applied(killed)) == 5
    train(config, *METHODS[method])
    assert applied(whole) == applied(killed)
    assert len({tuple(step.values()) for step in applied(whole)}) > 1, "the method never moved the weights"
    assert same_bits(weights(whole), weights(killed))


@pytest.mark.parametrize("method", [*FEW, pytest.param("famo", marks=slow)])
def test_weights_do_not_depend_on_the_micro_batches(
    method: str, tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    trajectories = []
    for rows, accumulation in ((4, 1), (1, 4)):
        config = write(
            tmp_path / str(rows), tiny_llama_dir, data,
            train__per_device_train_batch_size=rows, train__gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        train(config, *METHODS[method], "adapter.lora_dropout=0")
        trajectories.append([list(step.values()) for step in applied(config.parent / "run")])
    # CoBa compares slopes of losses, which enlarges their rounding: 1.1e-6 on a CPU with AVX2 only.
    assert trajectories[0] == [pytest.approx(step, abs=5e-6) for step in trajectories[1]]


LONG_WARMUP = ["balancer.val_batches=99", "balancer.warmup_steps=10", "balancer.window=12"]
"""Slopes over ten points and more: over four, the layouts' rounding errors in fp32 are 2e-6 of a weight."""


def rows_of(config_path: Path) -> int:
    """Rows of the whole data set in this layout."""
    config = load_config(config_path)
    return round(TrainLoader(prepare(config), config).steps_per_epoch)


@pytest.mark.parametrize("method", ["famo", pytest.param("coba", marks=slow)])
def test_weights_do_not_depend_on_packing(method: str, tmp_path: Path, tiny_llama_dir: Path) -> None:
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
        train(config, *everything, whole, "adapter.lora_dropout=0")
        trajectories.append([list(step.values()) for step in applied(config.parent / "run")])
    assert len(trajectories[0]) == 13 and trajectories[0][-1] != trajectories[0][0]
    # CoBa's weights come from slopes: small differences of losses, which float32 rounds to some 1e-7 of their size.
    tolerance = 2e-5 if method == "coba" else 1e-6
    for other in trajectories[1:]:
        assert other == [pytest.approx(step, abs=tolerance) for step in trajectories[0]]


def test_weights_and_slopes_are_in_metrics_and_tensorboard(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write(tmp_path / "seen", tiny_llama_dir, data)
    train(config, *METHODS["coba"], "train.report_to=tensorboard")
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
    config = write_config(tmp_path, tiny_llama_dir, data)
    for command in ("train", "validate"):
        process = start((command, config, *overrides), tmp_path / command, first=load_no_model)
        assert finish(process) == 2
        errors = (tmp_path / f"{command}.err").read_text()
        assert line in errors and "Traceback" not in errors


def load_no_model() -> None:
    """Let loading a model be a bug of ours in this process."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    app.load_model = load  # type: ignore[assignment]


def break_the_model_in_the_third_step() -> None:
    """Let this process's model have a weight that is no number, from its third step on."""
    step, begun = loop.train_step, 0

    def broken(model: LanguageModel, *rest: Any, **named: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == 3:
            model.causal_lm.get_input_embeddings().weight.data.fill_(float("nan"))
        return step(model, *rest, **named)

    loop.train_step = broken  # type: ignore[assignment]


def test_a_loss_that_is_not_finite_names_task_step_and_sample_or_is_counted(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    fields = {"train__max_steps": 8, "train__eval_strategy": "no", "train__save_steps": 1}
    config = write_config(tmp_path, tiny_llama_dir, data, **fields)
    stopped = start(("train", config), tmp_path / "stopped", first=break_the_model_in_the_third_step)
    assert finish(stopped) == 2
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000002\n"
    (error,) = (tmp_path / "stopped.err").read_text().splitlines()
    assert error.startswith("error: step 3: the loss of task '") and ".jsonl:" in error
    skipping = ("train", config, "train.on_nonfinite=skip", "--allow-changes")
    assert finish(start(skipping, tmp_path / "went-on", first=break_the_model_in_the_third_step)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["dropped_steps"]) == (8, 4)  # it went on with step 3, and 5 to 8 were broken
