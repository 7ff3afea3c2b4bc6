"""The loop: what is read when, and that reading late or going on after a stop changes no bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mftcoder.app import train as app
from mftcoder.config.load import parse_config
from mftcoder.errors import Interrupted, TrainingError
from mftcoder.jsonl import read_jsonl
from mftcoder.training import loop
from mftcoder.training.host_copy import HostCopy
from mftcoder.training.loop import TrainingRun

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
    """What stands in metrics.jsonl but for the clock."""
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
def test_results_are_read_where_something_is_due(
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


def test_a_run_that_reads_late_goes_on_from_where_it_was_stopped(train: Train) -> None:
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

    with pytest.raises(Interrupted, match="Start again with"):
        train("stopped", behind=0, hook=stop_at_once)
    assert same_bits(train("whole", behind=0), train("stopped", behind=0))


def poison(numbers: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the losses of these steps be nan: one weight is, for as long as the step takes."""
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


def test_steps_that_are_not_finite_are_counted_however_late_they_are_read(
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


def test_a_run_that_ends_at_such_a_step_leaves_the_model_as_it_was_however_late_it_reads(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read late, steps 4 to 6 were run after the bad one: none of them may have moved a weight."""
    runs: list[TrainingRun] = []
    for behind in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(TrainingError):
            poison({3}, patch)
            train(f"behind {behind}", behind=behind, hook=runs.append, logging_steps=5)
    at_once, late = (list(run.model.module.parameters()) for run in runs)
    assert all(torch.equal(one, other) for one, other in zip(at_once, late, strict=True))
