"""Records of a run: one line of metrics.jsonl per step, validation and change of weights; also for TensorBoard and the console.

When a run is resumed, the records after its checkpoint are removed, so that the file reads like one uninterrupted run.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError
from mftcoder.jsonl import names_in_errors, write_text
from mftcoder.log import OnProgress, no_progress, say, say_progress
from mftcoder.training.step import StepResult, Validated

Record = dict[str, Any]


def ignore(_: object) -> None:
    """A callback that does nothing."""


@dataclass(frozen=True)
class Callbacks:
    """The functions that a run calls on rank 0, in the order of events."""

    on_step: Callable[[Record], object] = ignore  # with the record of a logged step
    on_validation: Callable[[Record], object] = ignore
    on_checkpoint: Callable[[Path], object] = ignore  # with the folder, once it is on disk
    on_progress: OnProgress = no_progress

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be a function, not {value!r}" for name, value in vars(self).items() if not callable(value)
        ]
        if problems:
            raise ConfigError(*problems)


class MetricsLog:
    """Writes records; a context manager. Rank 0 writes for all, other ranks write nothing."""

    def __init__(self, config: RunConfig, *, total_steps: int, resumed_step: int, callbacks: Callbacks, rank: int = 0):
        self._path, self._writes = config.output_path / "metrics.jsonl", rank == 0
        self._callbacks = callbacks
        self._lines = RunLines(config.task_names, total_steps, callbacks.on_progress)
        if self._writes:
            keep_until(self._path, resumed_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._board = _tensorboard(config, resumed_step) if "tensorboard" in config.train.report_to else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._writes:
            return
        with names_in_errors(self._path):
            self._file.close()
        if self._board:
            self._board.close()

    def log(self, record: Record) -> None:
        """Write one record to the file, TensorBoard and the console."""
        if not self._writes:
            return
        record = {**record, "time": time.time()}
        plain = finite(record)
        with names_in_errors(self._path):
            self._file.write(json.dumps(plain) + "\n")
            self._file.flush()
        if self._board:
            for name, value in scalars(record):
                self._board.add_scalar(name, value, record["step"])
        self._lines.tell(record)
        if record["kind"] == "train":
            self._callbacks.on_step(plain)
        elif record["kind"] == "validation":
            self._callbacks.on_validation(plain)


def by_task(names: Sequence[str], values: NDArray[Any]) -> dict[str, Any]:
    """`{task: value}` with Python numbers; values [K]."""
    return dict(zip(names, values.tolist(), strict=True))


def train_record(
    step: int, epoch: float, result: StepResult, weights: TaskWeights, names: Sequence[str], pace: "Pace"
) -> Record:
    """The record of an optimizer step: objective, mean token losses and weights per task, and the pace since the last record."""
    return {
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "loss": result.objective,
        **({} if result.router_loss is None else {"router_loss": result.router_loss}),
        "losses": by_task(names, result.losses.mean),
        **_rewards(names, result.rewards, result.rollouts),
        "weights": by_task(names, weights.values),
        "tokens": by_task(names, result.counts.tokens),
        "learning_rate": result.learning_rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": pace.real_tokens / max(pace.seconds, 1e-9),
        "seconds": pace.seconds / pace.steps,
    }


@dataclass(frozen=True)
class Pace:
    """The time of the steps since the last record, and how many real (non-padding) tokens they ran."""

    steps: int
    seconds: float
    real_tokens: int


def _rewards(names: Sequence[str], sums: NDArray[Any] | None, rollouts: NDArray[Any] | None) -> Record:
    """`{"rewards": {task: ...}}`: of a task with pairs the means `chosen`, `rejected`, `margin` and `accuracy`; of a task of sampled
    answers the mean `reward`, the fraction of `clipped` tokens, and the mean `divergence` of a token."""
    if sums is None or rollouts is None:
        return {}
    found = {}
    for name, (reward, clipped, divergence, answers, tokens) in zip(names, rollouts.T.tolist(), strict=True):
        if tokens:
            found[name] = {"reward": reward / answers, "clipped": clipped / tokens, "divergence": divergence / tokens}
    for name, (chosen, rejected, right, num_chosen, num_rejected, judged) in zip(names, sums.T.tolist(), strict=True):
        if judged:
            means = {"chosen": _mean(chosen, num_chosen), "rejected": _mean(rejected, num_rejected)}
            found[name] = {**means, "margin": means["chosen"] - means["rejected"], "accuracy": _mean(right, judged)}
    return {"rewards": found}


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def validation_record(step: int, found: Validated, names: Sequence[str], seconds: float) -> Record:
    """The record of a validation: mean losses per task, and their mean over the tasks with validation data."""
    losses = found.losses
    means = finite(by_task(names, losses.mean))
    present = [value for value in means.values() if value is not None]
    return {
        "kind": "validation",
        "step": step,
        "loss": sum(present) / len(present) if present else None,
        "losses": means,
        **finite(_rewards(names, found.rewards, found.rollouts)),
        "tokens": by_task(names, losses.tokens),
        "seconds": seconds,
    }


def balance_record(
    step: int, weights: TaskWeights, signals: dict[str, NDArray[Any]], names: Sequence[str], rows: int, seconds: float
) -> Record:
    """The record of a balancer's choice after `step`: weights of the next steps, its signals per task, its cost."""
    return {
        "kind": "balance",
        "step": step,
        "weights": by_task(names, weights.values),
        "signals": {name: by_task(names, values) for name, values in signals.items()},
        "validation_rows": rows,
        "seconds": seconds,
    }


def finite(value: Any) -> Any:
    """Replace nan (the loss of a task without tokens) by None, because JSON has no nan."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def keep_until(path: Path, step: int) -> None:
    """Remove the records after `step`, and an incomplete last line; for step 0 remove all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if step and record.get("step", 0) <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def scalars(record: Record) -> list[tuple[str, float]]:
    """`(name, value)` for TensorBoard: `train/loss`, `train/loss/<task>`, `validation/loss/<task>`, `balance/slope/<task>`, ..."""
    kind = record["kind"]
    pairs = [(f"{kind}/{key}", value) for key, value in record.items() if isinstance(value, float) and key != "time"]
    for group, label in (("losses", "loss"), ("weights", "weight"), ("tokens", "tokens")):
        pairs += [(f"{kind}/{label}/{task}", value) for task, value in record.get(group, {}).items()]
    for task, values in record.get("rewards", {}).items():
        pairs += [(f"{kind}/reward_{name}/{task}", value) for name, value in values.items()]
    for signal, values in record.get("signals", {}).items():
        pairs += [(f"{kind}/{signal}/{task}", value) for task, value in values.items()]
    return [(name, float(value)) for name, value in pairs if value is not None and math.isfinite(value)]


def _tensorboard(config: RunConfig, resumed_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    folder = config.train.logging_dir or str(config.output_path / "tensorboard")
    return SummaryWriter(folder, purge_step=resumed_step + 1 if resumed_step else None)


class RunLines:
    """Logs a line per step and per validation, and reports the progress."""

    def __init__(self, tasks: Sequence[str], total_steps: int, on_progress: OnProgress):
        self._tasks, self._total, self._on_progress = tasks, total_steps, on_progress

    def tell(self, record: Record) -> None:
        """Log one record. The line of a step also goes to the progress callback."""
        if record["kind"] == "train":
            speed = f"loss {record['loss']:.4f}  {record['tokens_per_second']:.0f} tokens/s"
            shown = f"{speed}  {self._by_task(record)}"
            self._on_progress("train", record["step"], self._total, shown)
            say_progress(f"step {record['step']}/{self._total}  {shown}")
        elif record["kind"] == "validation":
            loss = "no validation data" if record["loss"] is None else f"loss {record['loss']:.4f}"
            say(f"validation at step {record['step']}: {loss}  {self._by_task(record)}")

    def _by_task(self, record: Record) -> str:
        """`tests 1.234  docs 2.345`; with the weights if they differ: `tests 1.234 ×0.31`."""
        weights = record.get("weights") or {}
        differ = len({round(weight, 6) for weight in weights.values()}) > 1
        shown = {task: record["losses"].get(task) for task in self._tasks}
        parts = [
            f"{task} {loss:.3f}" + self._margin(record, task) + (f" ×{weights[task]:.2f}" if differ else "")
            for task, loss in shown.items()
            if loss is not None and not math.isnan(loss)
        ]
        return "  ".join(parts)

    def _margin(self, record: Record, task: str) -> str:
        """` (accuracy 0.62, margin 0.104)` of a preference task; empty for another."""
        rewards = record.get("rewards", {}).get(task)
        if not rewards:
            return ""
        if "reward" in rewards:
            return f" (reward {rewards['reward']:.3f}, clipped {rewards['clipped']:.1%})"
        margin = rewards["margin"]
        known = margin is not None and not math.isnan(margin)  # a step may hold no undesirable answer
        return f" (accuracy {rewards['accuracy']:.2f}" + (f", margin {margin:.3f})" if known else ")")
