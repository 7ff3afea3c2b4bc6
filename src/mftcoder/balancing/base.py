"""The types every balancer speaks: losses per task in, weights per task out.

A task that is absent from a step keeps no weight in it: the step's objective divides by the weights of the tasks that are
present, so the others keep their proportions. K is the number of tasks, in the order of the config. numpy only.
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
        object.__setattr__(self, "values", values / values.sum())


class TaskBalancer(Protocol):
    """Chooses the task weights from what the losses do. One file a method in this folder, one row in `registry.BALANCERS`."""

    needs_validation: bool

    def observe(self, step: int, train: TaskLosses, validation: TaskLosses | None) -> TaskWeights:
        """The weights for the next step, after optimiser step `step` (1-based) was done."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `observe` depends on, as JSON-able values; floats survive JSON exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` to the last bit."""
        ...
