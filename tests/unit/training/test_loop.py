"""The loop: when results are read; reading late or continuing after a stop changes no bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mftcoder.app.training import train as app
from mftcoder.balancing.base import TaskLosses
from mftcoder.config.load import parse_config
from mftcoder.errors import Interrupted, TrainingError
from mftcoder.jsonl import read_jsonl
from mftcoder.training import loop
from mftcoder.training.loop import TrainingRun
from mftcoder.training.step import HostCopy, Validated

STEPS = 10
Train = Callable[..., Path]


@pytest.fixture
def train(
    tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Train:
    """`train(name, behind=1, ...)`: a real run of ten steps that reads results as on a GPU; its folder."""
    records = [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(40)]
    tasks = {name: str(make_jsonl(f"{name}.jsonl", records[start::2])) for start, name in enumerate(("even", "odd"))}

    def run(name: str, *, behind: int, hook: Callable[[TrainingRun], None] = lambda run: None, **train: Any) -> Path:
        def build(**parts: Any) -> TrainingRun:
            made = TrainingRun(**{**parts, "steps_behind": behind})
            hook(made)
            return made

        monkeypatch.setattr(app, "TrainingRun", build)
        balancer = train.pop("balancer", "uniform")
        usual = {"max_steps": STEPS, "eval_strategy": "no", "save_steps": 100, "report_to": [], "learning_rate": 0.01}
        raw = {
            "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
            "adapter": {"lora_rank": 4, "lora_dropout": 0.1},
            "tasks": tasks,
            "data": {"max_length": 64, "val_size": 0.3, "num_proc": 1},
            "balancer": balancer,
            "train": {**usual, **train},
            "backend": {"device": "cpu"},
            "output_dir": str(tmp_path / name),
        }
        app.train(parse_config(raw, origin="test"))
        return tmp_path / name

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "model" / "adapter_model.safetensors")


def records(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without times."""
    clock = ("time", "seconds", "tokens_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for _, record in read_jsonl(run / "metrics.jsonl")]


def same_bits(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("behind", "every", "expected"),
    [
        (1, 100, [STEPS]),  # the checkpoint at the end, and nothing before
        (1, 4, [5, 9, STEPS]),  # the records of steps 4 and 8, while the next one runs
        (1, 1, [2, 3, 4, 5, 6, 7, 8, 9, STEPS]),
        (0, 4, [1, 2, 3, 4, 5, 6, 7, 8, 9, STEPS]),  # on a CPU reading waits for nothing, and errors are told at once
    ],
)
def test_results_are_read_when_something_is_due(
    behind: int, every: int, expected: list[int], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []
    during: list[int] = []
    read = HostCopy.read

    def counted(copy: HostCopy) -> torch.Tensor:
        during.append(runs[0].progress.step)
        return read(copy)

    monkeypatch.setattr(HostCopy, "read", counted)
    run = train("run", behind=behind, hook=runs.append, logging_steps=every)
    assert sorted(set(during)) == expected and len(during) == STEPS  # each is read once
    assert [record["step"] for record in records(run)] == [
        n for n in range(1, STEPS + 1) if n % every == 0 or n == STEPS
    ]


@pytest.mark.parametrize("balancer", ["uniform", {"name": "coba", "warmup_steps": 2, "window": 4}, "dwa"], ids=str)
def test_reading_late_changes_no_bit(balancer: Any, train: Train) -> None:
    fields = {"balancer": balancer, "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 3}
    at_once, late = train("at once", behind=0, **fields), train("late", behind=1, **fields)
    assert same_bits(at_once, late) and records(at_once) == records(late)


def test_a_run_that_reads_late_continues_where_it_was_stopped(train: Train) -> None:
    def stop_after_5(run: TrainingRun) -> None:
        run.should_stop = lambda: run.progress.step == 5

    whole = train("whole", behind=1, logging_steps=4)
    with pytest.raises(Interrupted):
        train("stopped", behind=1, logging_steps=4, hook=stop_after_5)
    stopped = train("stopped", behind=1, logging_steps=4)
    assert same_bits(whole, stopped) and records(whole) == records(stopped)


def test_a_run_that_is_stopped_before_its_first_step_ends_at_once_and_starts_again(train: Train) -> None:
    def stop_at_once(run: TrainingRun) -> None:
        run.should_stop = lambda: True

    with pytest.raises(Interrupted, match="Start again"):
        train("stopped", behind=0, hook=stop_at_once)
    assert same_bits(train("whole", behind=0), train("stopped", behind=0))


def poison(numbers: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the losses of these steps nan, by making one weight nan during the step."""
    step, count = loop.train_step, 0

    def poisoned(model: Any, *rest: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        weight = model.causal_lm.get_input_embeddings().weight.data
        kept = weight.clone()
        if count in numbers:
            weight.fill_(float("nan"))
        result = step(model, *rest, **keywords)
        weight.copy_(kept)
        return result

    monkeypatch.setattr(loop, "train_step", poisoned)


def test_steps_that_are_not_finite_are_counted_even_if_they_are_read_late(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []
    folders = []
    for behind in (0, 1):
        with monkeypatch.context() as patch:
            poison({3, 6}, patch)
            folders.append(
                train(f"behind {behind}", behind=behind, hook=runs.append, logging_steps=5, on_nonfinite="skip")
            )
    assert [run.progress.dropped_steps for run in runs] == [2, 2]
    assert same_bits(*folders) and all(tensor.isfinite().all() for tensor in weights(folders[0]).values())


@pytest.mark.parametrize(("behind", "taken"), [(0, 3), (1, 6)])
def test_a_step_that_is_not_finite_ends_the_run_when_it_is_read(
    behind: int, taken: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []
    poison({3}, monkeypatch)
    with pytest.raises(TrainingError, match="step 3: the loss of task 'even'"):
        train("run", behind=behind, hook=runs.append, logging_steps=5)
    assert runs[0].progress.step == taken
    assert not (runs[0].config.output_path / "checkpoints" / f"step-{STEPS:08d}").exists()


def test_a_run_that_ends_at_such_a_step_leaves_the_model_unchanged_even_if_it_reads_late(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 to 6 run after the bad one, before it is read: none of them may change a weight."""
    runs: list[TrainingRun] = []
    for behind in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(TrainingError):
            poison({3}, patch)
            train(f"behind {behind}", behind=behind, hook=runs.append, logging_steps=5)
    at_once, late = (list(run.model.module.parameters()) for run in runs)
    assert all(torch.equal(one, other) for one, other in zip(at_once, late, strict=True))


def test_a_run_validates_before_its_first_step_where_it_is_due_and_at_its_end(train: Train) -> None:
    told: list[int] = []

    def listen(run: TrainingRun) -> None:
        evaluated = run.balancer.evaluated
        run.balancer.evaluated = lambda step, losses: (told.append(step), evaluated(step, losses))[1]  # type: ignore

    run = train("run", behind=0, hook=listen, eval_strategy="steps", eval_steps=4)
    validated = [record["step"] for record in records(run) if record["kind"] == "validation"]
    assert validated == told == [0, 4, 8, STEPS]


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def test_checkpoints_are_written_at_the_configured_steps_and_at_the_end(train: Train) -> None:
    run = train("run", behind=0, save_strategy="steps", save_steps=4, save_total_limit=None)
    assert saved(run) == [4, 8, STEPS]


def test_an_epoch_ends_with_a_checkpoint_also_in_the_middle_of_the_steps(train: Train) -> None:
    runs: list[TrainingRun] = []
    fields = {"per_device_train_batch_size": 3, "save_strategy": "epoch", "save_total_limit": None}
    run = train("run", behind=0, hook=runs.append, **fields)
    epoch = runs[0].train_loader.steps_per_epoch
    ends = {math.ceil(number * epoch) for number in range(1, STEPS + 1)}
    assert 1 < epoch < STEPS
    assert saved(run) == sorted({step for step in ends if step < STEPS} | {STEPS})


def test_a_run_that_is_asked_to_stop_at_its_last_step_is_finished(train: Train) -> None:
    def stop_at_the_end(run: TrainingRun) -> None:
        run.should_stop = lambda: run.progress.step == STEPS

    run = train("run", behind=0, hook=stop_at_the_end)
    assert json.loads((run / "summary.json").read_text())["stopped_because"] == "max_steps"


def losses_of(values: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation find these means: step -> loss of every task."""
    means = iter(values.values())
    ones = np.ones(2, np.int64)
    monkeypatch.setattr(loop, "validate", lambda *_: Validated(TaskLosses(np.full(2, next(means)), ones, ones), None))


def test_early_stopping_counts_validations_in_a_row_without_a_better_loss(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worse at 2, better at 4, then equal twice, which is not better."""
    losses_of({0: 5.0, 2: 6.0, 4: 4.0, 6: 4.0, 8: 4.0}, monkeypatch)
    runs: list[TrainingRun] = []
    fields = {"eval_strategy": "steps", "eval_steps": 2, "early_stopping_patience": 2}
    run = train("run", behind=0, hook=runs.append, **fields)
    progress = runs[0].progress
    assert (progress.step, progress.best_step, progress.best_value) == (8, 4, 4.0)
    assert json.loads((run / "summary.json").read_text())["stopped_because"] == "early_stopping"
    assert saved(run) == [4, 8]  # the best, and the last


def test_a_balancer_continues_in_the_middle_of_its_period(train: Train) -> None:
    """The losses that it has not observed yet come from the checkpoint."""

    def stop_after_6(run: TrainingRun) -> None:
        run.should_stop = lambda: run.progress.step == 6

    fields = {"balancer": {"name": "dwa", "update_interval": 4}}
    whole = train("whole", behind=0, **fields)
    with pytest.raises(Interrupted):
        train("stopped", behind=0, hook=stop_after_6, **fields)
    runs: list[TrainingRun] = []
    stopped = train("stopped", behind=0, hook=runs.append, **fields)
    assert runs[0].steps_taken == 4
    assert same_bits(whole, stopped) and records(whole) == records(stopped)


def test_the_lowest_loss_of_each_task_is_kept_with_its_own_step() -> None:
    validation: dict[str, dict[str, float | None]] = {}
    for step, losses in enumerate(({"a": 3.0, "b": None}, {"a": 4.0, "b": 2.0}, {"a": 3.0, "b": 1.0}, {"a": None})):
        loop.remember_lowest(validation, losses, step)  # type: ignore[arg-type]
    assert validation == {"lowest": {"a": 3.0, "b": 1.0}, "lowest_step": {"a": 0, "b": 2}}
