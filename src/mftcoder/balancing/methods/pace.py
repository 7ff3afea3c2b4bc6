"""Pace: bring every task to its best at the same step, without a validation pass (this project's own method).

A task's speed shows how near the task is to its best. D_k is the largest drop of its held-out loss so far, but at most its loss now:
training from scratch lowers a loss by several nats at first, and that says nothing about the rest. s_k is its slope now.

    q_k(t) = -s_k(t) / (D_k(t) / t)                     speed now over mean speed since the start

For a loss that decays exponentially, q = x / (e^x - 1) after x time constants: 1 at the start, 0 at the minimum, negative after it,
whatever the height of the loss. Tasks with equal q stay equally near their best and reach q = 0 together. So the weights push q
towards the mean m (weighted by confidence and by the weights themselves):

    z_k = gain (q_k - m) / max(|m|, 1/4)
    w_k = (1 - floor) softmax_k( c_k z_k ) + floor / K,      c_k = 1 / (1 + var(z_k) / 4)

The confidence c_k is the shrinkage of z_k by a prior of standard deviation 2 (empirical Bayes). A difference that can be noise moves
no weight. A task whose slope is unknown keeps its configured weight. A task that is past its best has q < 0 and falls towards the
floor; a task that is far from its best gains what the others lose. The floor is high for two reasons: a task that is hardly trained is
forgotten, and a task with all of the weight makes the gradients of the others rare.

s_k comes from three sources, in the order of their cost:
- Train losses of samples that the model has not seen yet. They are unbiased held-out losses and cost nothing. The whole first epoch
  consists of them.
- The run's own validations (`train.eval_steps`), which are measured anyway.
- Single rows of a small validation set (`val_rows` a task), measured in turn. Their number is such that they take `val_share` of the
  run's compute, where a forward pass of a row counts as half of a trained row.

One Kalman filter a task (`trend.py`) joins the three and gives slope, level and drop with their variances. The drop is counted from the
validation before the first step if the run has one, else from the first train losses together: one noisy first batch must not set the
scale of the whole run. Without measurements the variances grow and the weights return to the configured ones. The filter's time is the
logarithm of the step (of t + T/50 for a run of T steps), because losses fall fast at first and then more and more slowly.

At step t of T the filter looks back over t window / T steps. The defaults were chosen on simulated tasks (fast, slow, over-fitting,
flat, noisy, forgotten at a low weight); see docs/balancing.md.
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
    as_lists,
    check_window,
    softmax,
    weighted,
)
from mftcoder.balancing.trend import LossTrend
from mftcoder.config.balancer import BalancerConfig, computed
from mftcoder.config.section import Fraction, NonNegativeInt, PositiveFloat, PositiveInt

TRAINED_ROW_COST = 2  # in forward passes, at least: LoRA needs only part of the backward pass
LONGEST_WINDOW = 0.99  # of the run
FIRST_TIME = 50  # time is nearly linear over the first 1 / 50 of the run, then logarithmic
FASTEST = 2.0  # |q| is cut here; only noise makes it larger
PRIOR = 2.0  # standard deviation of z before anything is measured
SLOWEST_MEAN = 0.25  # differences are taken relative to the mean pace, or to this where the mean is smaller


class PaceOptions(BalancerConfig):
    """Options of Pace."""

    name: str = "pace"
    update_interval: PositiveInt | None = computed("a 300th of the run")
    """Optimizer steps between updates of the weights. At each one a GPU has to be waited for."""
    warmup_steps: NonNegativeInt | None = computed("a 10th of the run")
    """First optimizer steps, which use the configured weights."""
    window: PositiveInt | None = computed("two thirds of the run")
    """Optimizer steps that the filters look back at the end of the run; before it in proportion."""
    gain: PositiveFloat = 4.0
    """How strongly the weights follow the differences in pace."""
    floor: Fraction = 0.2
    """Smallest weight of a task, as a fraction of its configured weight."""
    val_share: Fraction = 0.015
    """Fraction of the run's compute spent on validation rows; with 0 only train losses of unseen samples and the run's validations count."""
    val_rows: PositiveInt = 4
    """Validation rows of each task that are measured in turn."""

    @property
    def options_without_effect(self) -> dict[str, str]:
        """`val_rows` without `val_share`."""
        return {} if self.val_share else {"val_rows": "balancer.val_share is 0"}

    @model_validator(mode="after")
    def _window_fits(self) -> "PaceOptions":
        check_window(self.window, self.warmup_steps)
        return self


class PaceBalancer(Passive):
    """Equal pace towards each task's best, from losses that the run has anyway and a few validation rows."""

    options_type = PaceOptions

    def __init__(self, config: PaceOptions, facts: RunFacts):
        self._facts = facts
        self._interval = config.update_interval or max(1, facts.total_steps // 300)
        self._warmup = facts.total_steps // 10 if config.warmup_steps is None else config.warmup_steps
        self._gain = config.gain
        self._floor = config.floor
        self._rows_a_step = config.val_share * TRAINED_ROW_COST * facts.rows_per_step
        self._rows = np.minimum(facts.validation_rows, config.val_rows)
        window = min((config.window or 2 * facts.total_steps / 3) / facts.total_steps, LONGEST_WINDOW)
        self._trends = [LossTrend(int(rows), float(-np.log1p(-window))) for rows in self._rows]
        self._time_unit = 1.0  # steps in a unit of the filters' time at this step
        self._factors = np.ones(facts.num_tasks)  # what the configured weights are multiplied by
        self._drop, self._pace, self._confidence = np.zeros((3, facts.num_tasks))

    @property
    def signals(self) -> dict[str, Float]:
        """Filtered loss, slope per step and its standard deviation, pace q, confidence c: [K] each."""
        return {
            "level": self._of_trends("level"),
            "slope": self._of_trends("slope") / self._time_unit,
            "slope_sd": np.sqrt(self._of_trends("slope_variance")) / self._time_unit,
            "pace": self._pace.copy(),
            "confidence": self._confidence.copy(),
        }

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The rows due since the last observation, at most one a task. Tasks take turns, and so do the rows of a task."""
        tasks = np.flatnonzero(self._rows)
        if not len(tasks):
            return ()
        owed, done = (int(self._rows_a_step * at) for at in (step, step - self._interval))
        turns = range(done, min(owed, done + len(tasks)))
        chosen = [(int(tasks[turn % len(tasks)]), turn // len(tasks)) for turn in turns]
        return tuple(ValidationRow(task, lap % int(self._rows[task])) for task, lap in chosen)

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Add the measurements to the filters. After the warm-up, compute the weights from the paces."""
        self._measure(step, train, validation)
        self._time_unit = step + self._facts.total_steps / FIRST_TIME
        if step >= self._warmup and any(trend.known for trend in self._trends):
            self._factors = self._new_factors(step)
        return weighted(self._facts, self._factors)

    def _measure(self, step: int, train: TaskLosses, validation: TaskLosses | None) -> None:
        time = self._time(step)
        for task, loss in enumerate(train.mean):
            if np.isfinite(loss) and step <= self._facts.fresh_steps[task]:
                self._trends[task].add_train_loss(time, float(loss), int(train.samples[task]))
            self._trends[task].advance(time)
        if validation is not None:
            for row in self.validation_rows(step):
                if np.isfinite(validation.mean[row.task]):
                    self._trends[row.task].add_row_loss(time, row.row, float(validation.mean[row.task]))

    def _time(self, step: int) -> float:
        """The filters' time: log(1 + 50 step / T), finite at step 0."""
        return float(np.log1p(step * FIRST_TIME / self._facts.total_steps))

    def _new_factors(self, step: int) -> Float:
        known = np.array([trend.known for trend in self._trends])
        self._drop = np.fmax(self._drop, self._of_trends("drop"))
        gain = np.fmin(self._drop, self._of_trends("level"))
        drop = np.sqrt(np.where(known, gain**2 + self._of_trends("drop_variance"), 0.0))
        measured = drop > 0  # a task that was measured once has no drop yet, so it has no pace
        # 1 / (mean speed since the start)
        speed = np.divide(step / self._time_unit, drop, out=np.zeros_like(drop), where=measured)
        pace = np.where(measured, -self._of_trends("slope") * speed, 0.0)
        variance = np.where(measured, self._of_trends("slope_variance") * speed**2, np.inf)
        self._pace = np.clip(pace, -FASTEST, FASTEST)
        scale = max(abs(self._mean_pace(variance, SLOWEST_MEAN)), SLOWEST_MEAN)
        mean = self._mean_pace(variance, scale)
        ahead = self._gain * self._confidence * (self._pace - mean) / scale
        return (1 - self._floor) * softmax(ahead) * len(ahead) + self._floor

    def _mean_pace(self, variance: Float, scale: float) -> float:
        """The mean pace m when differences are taken relative to `scale`; sets the confidences it is weighted with."""
        self._confidence = 1 / (1 + variance * (self._gain / (PRIOR * scale)) ** 2)
        trust = np.maximum(self._confidence, np.finfo(np.float64).tiny) * self._factors
        return float(trust @ self._pace / trust.sum())

    def _of_trends(self, name: str) -> Float:
        return np.array([getattr(trend, name) if trend.known else np.nan for trend in self._trends])

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Add the run's own validation to the filters."""
        for trend, loss, samples in zip(self._trends, losses.mean, losses.samples, strict=True):
            if np.isfinite(loss):
                trend.add_set_loss(self._time(step), float(loss), int(samples))

    def state_dict(self) -> dict[str, Any]:
        """The filters, the drops, the current factors, paces and confidences."""
        arrays = as_lists(factors=self._factors, drop=self._drop, pace=self._pace, confidence=self._confidence)
        return {**arrays, "trends": [trend.state_dict() for trend in self._trends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("factors", "drop", "pace", "confidence"):
            setattr(self, f"_{name}", as_array(state[name]))
        for trend, saved in zip(self._trends, state["trends"], strict=True):
            trend.load_state_dict(saved)
