"""Pace: every task to its best at the same step, without a validation pass (this project's own method).

How near a task is to its best shows in its speed: with D_k the largest drop of its held-out loss so far and s_k its slope now,

    q_k(t) = -s_k(t) / (D_k(t) / t)                     speed now over mean speed since the start

For a loss that decays exponentially with x time constants behind it q = x / (e^x - 1): 1 at the start, 0 at the minimum, negative
beyond, whatever the loss's height. Tasks with equal q stay equally near their best and reach q = 0 together. So the weights push
towards the mean pace m (weighted by confidence and by the weights themselves):

    w_k = (1 - floor) softmax_k( gain * c_k (q_k - m) / max(|m|, 1/4) ) + floor / K

with confidence c_k = 1 / (1 + var(q_k) / 4): a task whose slope is not known, or that never moved, keeps an ordinary weight.
A task that is past its best has q < 0 and falls to the floor; a task that is still far from it gains what the others lose.

Where s_k comes from, in the order of cost:
- Train losses of samples that the model has not seen yet are unbiased held-out losses and cost nothing: all of the first epoch.
- Beside them, and after it, single rows of a small validation set (`val_rows` a task: 4) are measured in turn, so many that they
  take `val_share` (1.5%) of the run's compute: a forward pass of a row is taken to cost half of a trained row.
Both go into one Kalman filter a task (`trend.py`), which gives slope and level with their variances. Without validation rows, and
after the first epoch, the variances grow and the weights return to the configured ones.

`window` (an eighth of the run) is how far back the filter looks, `warmup_steps` (a tenth of the run) how long the configured
weights are kept, `gain` 4, `floor` 0.03, `update_interval` a three-hundredth of the run, so that a GPU is seldom waited for.
The defaults were chosen on simulated tasks (fast, slow, over-fitting, flat, with noise), see docs/balancing.md.
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
FASTEST = 2.0  # |q| is cut here: only noise gets beyond
UNCERTAIN = 2.0  # standard deviation of q at which a task's confidence is one half
SLOWEST_MEAN = 0.25  # below this mean pace differences are no longer taken relative to it


class PaceBalancer:
    """Equal pace towards each task's best, from losses that are at hand and a trickle of validation rows."""

    needs_validation = False

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        self._facts = facts
        self._interval = config.update_interval or max(1, facts.total_steps // 300)
        self._warmup = facts.total_steps // 10 if config.warmup_steps is None else config.warmup_steps
        self._gain = config.gain or 4.0
        self._floor = 0.03 if config.floor is None else config.floor
        share = 0.015 if config.val_share is None else config.val_share
        self._rows_a_step = share * TRAINED_ROW_COST * facts.rows_per_step
        self._rows = np.minimum(facts.validation_rows, config.val_rows or 4)
        window = config.window or max(facts.total_steps / 8, 10.0 * self._interval)
        self._trends = [LossTrend(int(rows), window) for rows in self._rows]
        self._factors = np.ones(facts.num_tasks)  # what the configured weights are multiplied by
        self._start, self._start_variance = np.full((2, facts.num_tasks), np.nan)
        self._drop, self._pace, self._confidence = np.zeros((3, facts.num_tasks))

    @property
    def signals(self) -> dict[str, Float]:
        """Filtered loss, slope with its standard deviation, pace q and confidence c."""
        return {
            "level": self._of_trends("level"),
            "slope": self._of_trends("slope"),
            "slope_sd": np.sqrt(self._of_trends("slope_variance")),
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
        if step >= self._warmup and any(trend.known for trend in self._trends):
            self._remember_drops(step)
            self._factors = self._new_factors(step)
        return weighted(self._facts, self._factors)

    def _measure(self, step: int, train: TaskLosses, validation: TaskLosses | None) -> None:
        for task, loss in enumerate(train.mean):
            if np.isfinite(loss) and step <= self._facts.fresh_steps[task]:
                self._trends[task].add_train_loss(step, float(loss), int(train.samples[task]))
            self._trends[task].advance(step)
        if validation is not None:
            for row in self.validation_rows(step):
                if np.isfinite(validation.mean[row.task]):
                    self._trends[row.task].add_row_loss(step, row.row, float(validation.mean[row.task]))

    def _remember_drops(self, step: int) -> None:
        """Level at the start (extrapolated back when first asked for) and the largest drop from it."""
        level, slope = self._of_trends("level"), self._of_trends("slope")
        new = np.isnan(self._start) & np.isfinite(level)
        self._start = np.where(new, np.maximum(level, level - slope * step), self._start)
        self._start_variance = np.where(new, self._of_trends("level_variance"), self._start_variance)
        self._drop = np.fmax(self._drop, self._start - level)

    def _new_factors(self, step: int) -> Float:
        known = np.isfinite(self._start)
        uncertain = self._of_trends("level_variance") + self._start_variance
        mean_speed = np.sqrt(np.where(known, self._drop**2 + uncertain, 1.0)) / step
        pace = np.where(known, -self._of_trends("slope") / mean_speed, 0.0)
        variance = np.where(known, self._of_trends("slope_variance") / mean_speed**2, np.inf)
        self._pace = np.clip(pace, -FASTEST, FASTEST)
        self._confidence = 1 / (1 + variance / UNCERTAIN**2)
        say = self._confidence * self._factors
        mean = float(say @ self._pace / say.sum())
        ahead = self._confidence * (self._pace - mean) / max(abs(mean), SLOWEST_MEAN)
        return (1 - self._floor) * softmax(self._gain * ahead) * len(ahead) + self._floor

    def _of_trends(self, name: str) -> Float:
        return np.array([getattr(trend, name) if trend.known else np.nan for trend in self._trends])

    def state_dict(self) -> dict[str, Any]:
        """The filters, the start levels and drops, and the factors in force."""
        arrays = as_lists(
            factors=self._factors,
            start=self._start,
            start_variance=self._start_variance,
            drop=self._drop,
            pace=self._pace,
            confidence=self._confidence,
        )
        return {**arrays, "trends": [trend.state_dict() for trend in self._trends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in ("factors", "start", "start_variance", "drop", "pace", "confidence"):
            setattr(self, f"_{name}", as_array(state[name]))
        for trend, saved in zip(self._trends, state["trends"], strict=True):
            trend.load_state_dict(saved)
