"""The losses that a method looks at: those of the training steps, or of a few validation rows of every task.

The methods were published for train losses. The CoBa paper also runs FAMO, LBTW and GradNorm on validation losses (its starred rows).
With `signal: validation` the same `val_batches` rows of each task are measured at every update. These methods compare a loss with an
earlier one, and different rows would add noise to the comparison.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from mftcoder.balancing.base import (
    Float,
    Passive,
    RunFacts,
    TaskLosses,
    ValidationRow,
    as_array,
    stratified_rows,
)
from mftcoder.config.balancer import BalancerConfig, computed
from mftcoder.config.section import PositiveInt


class SignalOptions(BalancerConfig):
    """Options that every such method has."""

    signal: Literal["train", "validation"] = "train"
    """Losses the method looks at: those of the training steps, or of val_batches validation rows of each task."""
    val_batches: PositiveInt | None = computed("1 with signal: validation")
    """Validation rows of each task measured at an update, the same rows each time."""

    @model_validator(mode="after")
    def _validation_is_read(self) -> "SignalOptions":
        if self.val_batches is not None and self.signal != "validation":
            raise ValueError("val_batches is for signal: validation")
        return self


class LossReader(Passive):
    """Base of methods that need one mean loss per task at each update, every `interval` steps."""

    remembered: ClassVar[tuple[str, ...]]
    """The attributes, without their underscore, that `observe` depends on: arrays and numbers."""

    def __init__(self, config: SignalOptions, facts: RunFacts, *, interval: int):
        self.facts = facts
        self.needs_validation = config.signal == "validation"
        self._interval = interval
        self._rows = stratified_rows(facts, 0, config.val_batches or 1) if self.needs_validation else ()

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The same rows each time, or none."""
        return self._rows

    def measured(self, train: TaskLosses, validation: TaskLosses | None) -> Float:
        """Mean token loss [K] of the signal; nan for an absent task."""
        if not self.needs_validation:
            return train.mean
        assert validation is not None, "the loop measures the rows that validation_rows names"
        return validation.mean

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, as values that JSON can hold."""
        return {name: np.asarray(getattr(self, f"_{name}")).tolist() for name in self.remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.remembered:
            value = state[name]
            setattr(self, f"_{name}", as_array(value) if isinstance(value, list) else value)
