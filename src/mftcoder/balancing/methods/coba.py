"""CoBa: Convergence Balancer (Gong, Yu, Liao, Liu, Chen, Li 2024, arXiv 2410.06741), in the paper's form and the published code's.

With y_k(t) = L_k_val(t) / L_k_val(0) measured on a few validation rows of every task, alpha_k(t) the least-squares slope of y_k
over the last N steps, K tasks, and 0 / 0 = 0:

    RCS_k(t)  = softmax_k( K alpha_k(t) / sum_j |alpha_j(t)| )                         a slow task gains
    ACS_k(t)  = softmax_k( -N alpha_k(t) / sum_{s in the window} |alpha_k(s)| )        a diverging task loses
    DF(t)     = min( t softmax_t( -tau t alpha_max(t) / sum_{s<=t} |alpha_max(s)| ), 1 ),    alpha_max = max_k alpha_k
    omega(t)  = DF RCS + (1 - DF) ACS

`val_batches` rows of each task at an update (1), every `update_interval` steps (1), going round the validation set; `tau` 5;
`warmup_steps` W with the configured weights: one pass over the validation set, as the paper advises, but at most a tenth of the
run; `window` N: 2 W, the lower end of the paper's 2 M to 5 M.

Decided here, where the paper leaves room:
- L_val(0) is the first measurement, after step 1 (not with `variant: released`): the ratio of a task is scaled by a constant, which only
  RCS notices.
- Slopes are kept from the end of the warm-up on, as in the published code; t of DF and N of ACS count the slopes there are
  (ACS: at most those of the last N steps), so that both softmaxes see as many terms as they are scaled by.
- The softmax over time takes each past alpha_max with the scale of now: logits -tau t alpha_max(s) / sum |alpha_max| over s <= t.
- W and N count optimizer steps whatever the interval; slopes are per step. All formulas are free of the unit of time.
- A task whose measurement is not finite keeps its last ratio; constant losses have slope 0 everywhere and give equal weights.

`variant: released` is the arithmetic of the published MFTCoder: L_val(0) is the whole validation before the first step; alpha_max is the slope of the curve max_k y_k(t) rather than the
largest slope; DF is not clamped at 1; the window of ACS holds N - W + 1 slopes; and the result is
omega = softmax_k(K (DF RCS + (1 - DF) ACS)), mixed with 1 / (10 K) where a weight falls below that.
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
    latest,
    softmax,
    stratified_rows,
    weighted,
)
from mftcoder.config.schema import BalancerConfig


class CobaBalancer:
    """Even convergence of the validation losses, and no reward for divergence."""

    needs_validation = True

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        self._facts = facts
        self._rows = config.val_batches or 1
        self._interval = config.update_interval or 1
        one_pass = -(-int(facts.validation_rows.max(initial=1)) // self._rows) * self._interval
        self._warmup = min(one_pass, facts.total_steps // 10) if config.warmup_steps is None else config.warmup_steps
        self._window = config.window or max(2 * self._warmup, 4 * self._interval)
        self._warmup = min(self._warmup, self._window)
        self._tau = config.tau or 5.0
        self._released = config.variant == "released"
        self._first = np.full(facts.num_tasks, np.nan)
        self._ratios: list[Float] = []  # of the last N steps, oldest first
        self._slopes: list[Float] = []  # since the warm-up, at most N steps back
        self._worst: list[float] = []  # alpha_max since the warm-up, all of it: DF looks back to the start

    @property
    def signals(self) -> dict[str, Float]:
        """Slope per step and its ingredients; DF is one number, given for each task."""
        slope = self._slopes[-1] if self._slopes else np.full(self._facts.num_tasks, np.nan)
        factor = self._divergence_factor() if self._worst else np.nan
        return {"slope": slope, "divergence_factor": np.full(self._facts.num_tasks, factor)}

    def due(self, step: int) -> bool:
        """After steps 1, 1 + interval, 1 + 2 interval, ...: the first measurement is the reference."""
        return (step - 1) % self._interval == 0

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The next `val_batches` rows of every task."""
        return stratified_rows(self._facts, (step - 1) // self._interval * self._rows, self._rows)

    def needs_gradients(self, step: int) -> bool:
        """Never."""
        return False

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """The configured weights during the warm-up, then omega."""
        assert validation is not None, "the loop measures the rows that validation_rows names"
        self._first = latest(validation.mean, self._first)
        now = validation.mean / self._first
        self._ratios = [*self._ratios, latest(self._ratios[-1] if self._ratios else np.ones_like(now), now)]
        self._ratios = self._ratios[-max(2, self._window // self._interval) :]
        if step < self._warmup or len(self._ratios) < 2:
            return TaskWeights(self._facts.weights)
        self._remember_slopes()
        return weighted(self._facts, self._omega())

    def _remember_slopes(self) -> None:
        curves = np.stack(self._ratios)  # [n, K]
        slopes = least_squares_slope(curves) / self._interval
        worst = least_squares_slope(curves.max(axis=1)) / self._interval if self._released else slopes.max()
        self._slopes = [*self._slopes, slopes][-self._slopes_kept() :]
        self._worst = [*self._worst, float(worst)]

    def _slopes_kept(self) -> int:
        steps = self._window - self._warmup + 1 if self._released else self._window
        return max(1, steps // self._interval)

    def _omega(self) -> Float:
        slopes, tasks = np.stack(self._slopes), self._facts.num_tasks
        relative = softmax(tasks * _over(slopes[-1], np.abs(slopes[-1]).sum()))
        absolute = softmax(-len(slopes) * _over(slopes[-1], np.abs(slopes).sum(axis=0)))
        factor = self._divergence_factor()
        omega = factor * relative + (1 - factor) * absolute
        return released_weights(omega) if self._released else omega

    def _divergence_factor(self) -> float:
        worst = np.array(self._worst)
        share = softmax(-self._tau * len(worst) * _over(worst, np.abs(worst).sum()))[-1]
        factor = float(len(worst) * share)
        return factor if self._released else min(factor, 1.0)

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Take the validation before the first step as the reference, as the published code does."""
        if self._released and step == 0:
            self._first = losses.mean

    def state_dict(self) -> dict[str, Any]:
        """Reference losses, the window of ratios and slopes, all of alpha_max."""
        return {
            "first": self._first.tolist(),
            "ratios": [row.tolist() for row in self._ratios],
            "slopes": [row.tolist() for row in self._slopes],
            "worst": list(self._worst),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._first = as_array(state["first"])
        self._ratios = [as_array(row) for row in state["ratios"]]
        self._slopes = [as_array(row) for row in state["slopes"]]
        self._worst = list(state["worst"])


def least_squares_slope(values: Float) -> Any:
    """Slope per observation of the line through `values` [n] or [n, K], n >= 2: a number or [K]."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    return np.tensordot(time, values - values.mean(axis=0), axes=1) / (time @ time)


def released_weights(mixture: Float) -> Float:
    """The published code's last two steps: a softmax over K * omega, and 1 / (10 K) mixed in where a weight is below it."""
    weights = softmax(len(mixture) * mixture)
    least = 1 / (10 * len(mixture))
    return weights * (1 - least * len(mixture)) + least if (weights < least).any() else weights


def _over(values: Float, total: Float) -> Float:
    """values / total, 0 where total is 0."""
    return np.divide(values, total, out=np.zeros(np.broadcast(values, total).shape), where=np.asarray(total) > 0)
