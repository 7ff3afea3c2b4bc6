"""The types every balancer speaks: losses per task in, weights per task out.

After each optimizer step that is `due(step)` the loop measures what `validation_rows(step)` and `needs_gradients(step)` name
(nothing, for most methods) and hands it to `observe`, together with the train losses summed since the observation before; the
weights it gives hold until the next one. A task that is absent from a step keeps no weight in it, or keeps its share unused:
`loss.absent_task` says which. K is the number of tasks, in the order of the config; numpy only, and nothing here knows a model
or a file.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class TaskLosses:
    """Summed token losses of each task over a step or a validation pass, with what they were summed over."""

    loss_sum: Float  # [K] sum of the trained tokens' cross entropy, in nats
    tokens: Int  # [K] trained tokens
    samples: Int  # [K] samples with at least one trained token

    @property
    def mean(self) -> Float:
        """Mean token loss [K]; nan for a task with no trained token, never 0 (0 would read as solved)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.tokens > 0, self.loss_sum / np.maximum(self.tokens, 1), np.nan)

    def __add__(self, other: "TaskLosses") -> "TaskLosses":
        return TaskLosses(self.loss_sum + other.loss_sum, self.tokens + other.tokens, self.samples + other.samples)

    @staticmethod
    def zeros(num_tasks: int) -> "TaskLosses":
        """Nothing seen yet."""
        return TaskLosses(np.zeros(num_tasks), np.zeros(num_tasks, np.int64), np.zeros(num_tasks, np.int64))


@dataclass(frozen=True)
class TaskWeights:
    """How much each task counts: non-negative, sum 1."""

    values: Float  # [K]

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise ValueError(f"task weights must be finite, non-negative and not all zero, not {values}")
        total = values.sum()
        # Dividing again would move the last bit, and a resumed run reads what was divided before.
        object.__setattr__(self, "values", values if abs(total - 1) < 1e-12 else values / total)


@dataclass(frozen=True)
class RunFacts:
    """What a balancer may know about the run before its first step."""

    weights: Float  # [K] the configured task weights; every method keeps them as a factor on its own
    seed: int
    total_steps: int  # optimizer steps of the whole run
    rows_per_step: int  # rows of one optimizer step, over its micro-batches and ranks
    fresh_steps: Int  # [K] the first so many steps meet each sample of the task for the first time
    validation_rows: Int  # [K] rows of each task's validation set

    @property
    def num_tasks(self) -> int:
        """K."""
        return len(self.weights)


@dataclass(frozen=True)
class ValidationRow:
    """One row of one task's validation set, to be measured without gradients. Rows are counted per task, from 0."""

    task: int
    row: int


class TaskBalancer(Protocol):
    """Chooses the task weights from what the losses do. One file a method in this folder, one row in `registry.BALANCERS`.

    Built as `Method(config, facts)` with a `BalancerConfig` and the `RunFacts`. Steps are counted from 1.
    """

    needs_validation: bool  # whether every task must have validation rows

    @property
    def signals(self) -> dict[str, Float]:
        """What the method measured, by name, [K] each (slopes, logits, ...): for the logs, nan where unknown."""
        ...

    def due(self, step: int) -> bool:
        """Whether `observe` is called after optimizer step `step`. Between due steps nothing waits for the device."""
        ...

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The rows to measure after the due step `step`; often empty."""
        ...

    def needs_gradients(self, step: int) -> bool:
        """Whether `observe` wants the norm of each task's gradient on the last shared layer after the due step `step`."""
        ...

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """The weights from the next step on, after the due step `step` was done.

        `train` sums the steps since the last observation; `validation` sums the rows of `validation_rows(step)`, None if there
        were none; `gradient_norms` [K] are the norms of the unweighted mean task losses' gradients (nan for an absent task),
        measured on the validation rows if there are any, else on rows of the step; None unless `needs_gradients(step)`.
        """
        ...

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Hear of the run's own validation after `step`, of all rows: measured anyway, at no cost to the method."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `observe` depends on, as JSON-able values; floats survive JSON exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` to the last bit."""
        ...


class DeafToEvaluations:
    """What a method answers that takes its signal elsewhere than from the run's own validation."""

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Nothing."""


class Passive(DeafToEvaluations):
    """What a method answers that measures nothing of its own: no validation rows, no gradients, no signals."""

    needs_validation = False

    @property
    def signals(self) -> dict[str, Float]:
        """None."""
        return {}

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """None."""
        return ()

    def needs_gradients(self, step: int) -> bool:
        """Never."""
        return False


def weighted(facts: RunFacts, values: Float) -> TaskWeights:
    """The configured weights times a method's own factors, normalised."""
    return TaskWeights(facts.weights * values)


def stratified_rows(facts: RunFacts, first: int, count: int) -> tuple[ValidationRow, ...]:
    """`count` rows of every task that has any, from row `first` on, starting again at a task's end: no task is ever missing."""
    return tuple(
        ValidationRow(task, (first + offset) % int(rows))
        for task, rows in enumerate(facts.validation_rows)
        if rows > 0
        for offset in range(min(count, int(rows)))
    )


def latest(previous: Float, now: Float) -> Float:
    """`now`, with a task that is absent (nan) or not finite keeping its `previous` value."""
    return np.where(np.isfinite(now), now, previous)


def softmax(values: Float) -> Float:
    """exp(values) / sum over the last axis, without overflow."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def jacobian_product(probabilities: Float, vector: Float) -> Float:
    """Softmax Jacobian at `probabilities` times `vector`: p * (v - p.v)."""
    return probabilities * (vector - probabilities @ vector)


def as_lists(**arrays: Float | Int | None) -> dict[str, Any]:
    """Arrays as JSON-able lists; None stays None."""
    return {name: None if array is None else array.tolist() for name, array in arrays.items()}


def as_array(value: Any) -> Float:
    """What `as_lists` wrote, as float64."""
    return np.asarray(value, np.float64)
