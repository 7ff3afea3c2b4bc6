"""Self-paced weighting of the published MFTCoder (`weighted_loss_mode: selfpaced`, version 0.3), the method before CoBa.

With a_k the least-squares slope of task k's last N validation losses and K tasks

    z_k = K a_k / sum_j |a_j|
    w   = softmax( gain * softmax(z)_k * (-z_k) )

The weights are equal while all slopes are 0. softmax(z) (-z) is positive for a falling loss, largest at the mean speed (z = -1), and
negative for a rising loss. A `gain` of 50 makes the outer softmax sharp: often one task has nearly all of the weight. `window` is N in
optimizer steps.

Choices made here: every task is measured at every update (the published code draws one batch, which can miss tasks). A measurement
that is not finite is left out of its task's line. A task with fewer than two measurements has slope 0.
"""

from typing import Any

import numpy as np
from pydantic import model_validator

from mftcoder.balancing.base import (
    Float,
    Passive,
    RunFacts,
    TaskLosses,
    TaskWeights,
    ValidationRow,
    as_array,
    check_window,
    softmax,
    stratified_rows,
    weighted,
)
from mftcoder.config.balancer import BalancerConfig, computed
from mftcoder.config.section import NonNegativeInt, PositiveFloat, PositiveInt

UPDATES = 100


class SelfPacedOptions(BalancerConfig):
    """Options of self-paced weighting."""

    name: str = "selfpaced"
    val_batches: PositiveInt = 1
    """Validation rows of each task measured at an update: the next ones each time, then from the first again."""
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    warmup_steps: NonNegativeInt | None = computed("the window")
    """First optimizer steps, which use the configured weights."""
    window: PositiveInt | None = computed("100 updates, at most a 5th of the run")
    """Optimizer steps that slopes are fitted over."""
    gain: PositiveFloat = 50.0
    """How strongly the weights follow the slopes."""

    @model_validator(mode="after")
    def _window_fits(self) -> "SelfPacedOptions":
        check_window(self.window, self.warmup_steps, self.update_interval)
        return self


class SelfPacedBalancer(Passive):
    """Weight by the slopes of the validation losses in a window."""

    options_type = SelfPacedOptions
    needs_validation = True

    def __init__(self, config: SelfPacedOptions, facts: RunFacts):
        self._facts = facts
        self._rows = config.val_batches
        self._interval = config.update_interval
        usual = min(UPDATES * self._interval, max(facts.total_steps // 5, 2 * self._interval))
        self._window = config.window or usual
        self._warmup = self._window if config.warmup_steps is None else config.warmup_steps
        self._gain = config.gain
        self._losses: list[Float] = []  # of the window, oldest first; nan where not finite
        self._slopes = np.full(facts.num_tasks, np.nan)

    @property
    def signals(self) -> dict[str, Float]:
        """Slope per step [K]."""
        return {"slope": self._slopes / self._interval}

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The next `val_batches` rows of every task."""
        return stratified_rows(self._facts, (step // self._interval - 1) * self._rows, self._rows)

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """The configured weights during the warm-up, then those of the formula."""
        assert validation is not None, "the loop measures the rows that validation_rows names"
        self._losses = [*self._losses, validation.mean][-(self._window // self._interval) :]
        self._slopes = np.array([_slope(curve) for curve in np.stack(self._losses, axis=1)])
        if step < self._warmup or not self._slopes.any():
            return TaskWeights(self._facts.weights)
        return weighted(self._facts, selfpaced_weights(self._slopes, self._gain))

    def state_dict(self) -> dict[str, Any]:
        """The losses of the window and their slopes."""
        return {"losses": [row.tolist() for row in self._losses], "slopes": self._slopes.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._slopes = [as_array(row) for row in state["losses"]], as_array(state["slopes"])


def selfpaced_weights(slopes: Float, gain: float) -> Float:
    """The formula for slopes [K] that are not all 0."""
    relative = len(slopes) * slopes / np.abs(slopes).sum()
    return np.maximum(softmax(gain * softmax(relative) * -relative), np.finfo(np.float64).tiny)


def _slope(curve: Float) -> float:
    """Slope per update of the line through the finite values of `curve` [n]; exactly 0 for a constant curve."""
    finite = np.isfinite(curve)
    if finite.sum() < 2:
        return 0.0
    time, values = np.flatnonzero(finite), curve[finite]
    centred = time - time.mean()
    return float(centred @ (values - values[0]) / (centred @ centred))
