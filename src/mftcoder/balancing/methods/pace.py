"""Pace: every task to its best at the same step, without a validation pass (this project's own method).

How near a task is to its best shows in its speed: with D_k the largest drop of its held-out loss so far, but at most its level now (what
falls by nats when a model is trained from scratch says nothing about the rest), and s_k its slope now,

    q_k(t) = -s_k(t) / (D_k(t) / t)                     speed now over mean speed since the start

For a loss that decays exponentially with x time constants behind it q = x / (e^x - 1): 1 at the start, 0 at the minimum, negative
beyond, whatever the loss's height. Tasks with equal q stay equally near their best and reach q = 0 together. So the weights push
towards the mean pace m (weighted by confidence and by the weights themselves):

    z_k = gain (q_k - m) / max(|m|, 1/4)
    w_k = (1 - floor) softmax_k( c_k z_k ) + floor / K,      c_k = 1 / (1 + var(z_k) / 4)

The confidence c_k is what a prior of standard deviation 2 for z_k leaves of it (empirical Bayes): a difference that may be noise moves no
weight, and a task whose slope is not known keeps an ordinary one. A task that is past its best has q < 0 and falls towards
the floor; a task that is still far from it gains what the others lose. The floor is high, since a task that is hardly trained is
forgotten, and one that has all the weight makes the others' gradients rare.

Where s_k comes from, in the order of cost:
- Train losses of samples that the model has not seen yet are unbiased held-out losses and cost nothing: all of the first epoch.
- The run's own validations (`train.eval_steps`) are measured anyway.
- Beside them single rows of a small validation set (`val_rows` a task: 4) are measured in turn, so many that they
  take `val_share` (1.5%) of the run's compute: a forward pass of a row is taken to cost half of a trained row.
All go into one Kalman filter a task (`trend.py`), which gives slope, level and drop with their variances. The drop counts from the
validation before the first step, where the run has one, else from what the first train losses together say: one noisy first batch
must not set the scale of the whole run. Without any measurement the variances grow and the weights return to the configured ones. The filter's time is the logarithm of the step (t + T/50 for a run of T steps): losses
fall fast at first and ever more slowly, and are far straighter in it.

`window` (two thirds of the run) is how far back the filter looks at the end of the run, at step t then over t window / T steps; `warmup_steps` (a tenth of the run) how long the configured
weights are kept, `gain` 4, `floor` 0.2, `update_interval` a three-hundredth of the run, so that a GPU is seldom waited for.
The defaults were chosen on simulated tasks (fast, slow, over-fitting, flat, with noise, forgotten where the weight is low), see docs/balancing.md.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import (
    Float,
    RunFacts,
    TaskLosses,
    TaskWeights,
    ValidationRow,
    as_array,
    as_lists,
    softmax,
    weighted,
)
from mftcoder.balancing.trend import LossTrend
from mftcoder.config.schema import BalancerConfig

TRAINED_ROW_COST = 2  # forward passes at least: LoRA spares part of the backward pass
LONGEST_WINDOW = 0.99  # of the run
FIRST_TIME = 50  # the share 1 / 50 of the run passes before the logarithm of time takes hold
FASTEST = 2.0  # |q| is cut here: only noise gets beyond
PRIOR = 2.0  # standard deviation of z that is believed in before anything is measured
SLOWEST_MEAN = 0.25  # below this mean pace differences are no longer taken relative to it


class PaceBalancer:
    """Equal pace towards each task's best, from losses that are at hand and a trickle of validation rows."""

    needs_validation = False

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        self._facts = facts
        self._interval = config.update_interval or max(1, facts.total_steps // 300)
        self._warmup = facts.total_steps // 10 if config.warmup_steps is None else config.warmup_steps
        self._gain = config.gain or 4.0
        self._floor = 0.2 if config.floor is None else config.floor
        share = 0.015 if config.val_share is None else config.val_share
        self._rows_a_step = share * TRAINED_ROW_COST * facts.rows_per_step
        self._rows = np.minimum(facts.validation_rows, config.val_rows or 4)
        window = min((config.window or 2 * facts.total_steps / 3) / facts.total_steps, LONGEST_WINDOW)
        self._trends = [LossTrend(int(rows), float(-np.log1p(-window))) for rows in self._rows]
        self._time_unit = 1.0  # steps in a unit of the filters' time, now
        self._factors = np.ones(facts.num_tasks)  # what the configured weights are multiplied by
        self._drop, self._pace, self._confidence = np.zeros((3, facts.num_tasks))

    @property
    def signals(self) -> dict[str, Float]:
        """Filtered loss, slope a step with its standard deviation, pace q and confidence c."""
        return {
            "level": self._of_trends("level"),
            "slope": self._of_trends("slope") / self._time_unit,
            "slope_sd": np.sqrt(self._of_trends("slope_variance")) / self._time_unit,
            "pace": self._pace.copy(),
            "confidence": self._confidence.copy(),
        }

    def due(self, step: int) -> bool:
        """After each full interval."""
        return step % self._interval == 0

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The rows that have come due since the last observation, at most one a task: tasks in turn, then rows in turn."""
        tasks = np.flatnonzero(self._rows)
        if not len(tasks):
            return ()
        owed, done = (int(self._rows_a_step * at) for at in (step, step - self._interval))
        turns = range(done, min(owed, done + len(tasks)))
        chosen = [(int(tasks[turn % len(tasks)]), turn // len(tasks)) for turn in turns]
        return tuple(ValidationRow(task, lap % int(self._rows[task])) for task, lap in chosen)

    def needs_gradients(self, step: int) -> bool:
        """Never."""
        return False

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Fold the measurements into the filters; from the end of the warm-up on, weigh by pace."""
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
        """The filters' time: the logarithm of the step, without its pole."""
        return float(np.log1p(step * FIRST_TIME / self._facts.total_steps))

    def _new_factors(self, step: int) -> Float:
        known = np.array([trend.known for trend in self._trends])
        self._drop = np.fmax(self._drop, self._of_trends("drop"))
        gain = np.fmin(self._drop, self._of_trends("level"))
        drop = np.sqrt(np.where(known, gain**2 + self._of_trends("drop_variance"), 0.0))
        measured = drop > 0  # a task that was measured once has no drop yet, and so no pace
        # of a slope of 1, over the mean speed
        speed = np.divide(step / self._time_unit, drop, out=np.zeros_like(drop), where=measured)
        pace = np.where(measured, -self._of_trends("slope") * speed, 0.0)
        variance = np.where(measured, self._of_trends("slope_variance") * speed**2, np.inf)
        self._pace = np.clip(pace, -FASTEST, FASTEST)
        scale = max(abs(self._mean_pace(variance, SLOWEST_MEAN)), SLOWEST_MEAN)
        mean = self._mean_pace(variance, scale)
        ahead = self._gain * self._confidence * (self._pace - mean) / scale
        return (1 - self._floor) * softmax(ahead) * len(ahead) + self._floor

    def _mean_pace(self, variance: Float, scale: float) -> float:
        """m, and the confidences that it is weighted with, where differences are taken relative to `scale`."""
        self._confidence = 1 / (1 + variance * (self._gain / (PRIOR * scale)) ** 2)
        say = np.maximum(self._confidence, np.finfo(np.float64).tiny) * self._factors
        return float(say @ self._pace / say.sum())

    def _of_trends(self, name: str) -> Float:
        return np.array([getattr(trend, name) if trend.known else np.nan for trend in self._trends])

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Take the run's own validation into the filters."""
        for trend, loss, samples in zip(self._trends, losses.mean, losses.samples, strict=True):
            if np.isfinite(loss):
                trend.add_set_loss(self._time(step), float(loss), int(samples))

    def state_dict(self) -> dict[str, Any]:
        """The filters, the drops, and the factors in force."""
        arrays = as_lists(factors=self._factors, drop=self._drop, pace=self._pace, confidence=self._confidence)
        return {**arrays, "trends": [trend.state_dict() for trend in self._trends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in ("factors", "drop", "pace", "confidence"):
            setattr(self, f"_{name}", as_array(state[name]))
        for trend, saved in zip(self._trends, state["trends"], strict=True):
            trend.load_state_dict(saved)
