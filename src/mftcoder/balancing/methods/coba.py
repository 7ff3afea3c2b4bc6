"""CoBa: Convergence Balancer (Gong, Yu, Liao, Liu, Chen, Li 2024, arXiv 2410.06741), as in the paper or as in the published code.

With y_k(t) = L_k_val(t) / L_k_val(0) measured on a few validation rows of every task, alpha_k(t) the least-squares slope of y_k
over the last N steps, K tasks, and 0 / 0 = 0:

    RCS_k(t)  = softmax_k( K alpha_k(t) / sum_j |alpha_j(t)| )                         a slow task gains
    ACS_k(t)  = softmax_k( -N alpha_k(t) / sum_{s in the window} |alpha_k(s)| )        a diverging task loses
    DF(t)     = min( t softmax_t( -tau t alpha_max(t) / sum_{s<=t} |alpha_max(s)| ), 1 ),    alpha_max = max_k alpha_k
    omega(t)  = DF RCS + (1 - DF) ACS

N is `window`, W is `warmup_steps`. The default W is one pass over the validation set, as the paper advises, but at most a tenth of
the run. The default N is 2 W, the lower end of the paper's 2 M to 5 M.

Choices made here, where the paper leaves room:
- L_val(0) is the first measurement, after step 1 (not with `variant: released`). It scales a task's ratio by a constant, which
  changes only RCS.
- Slopes are kept from the end of the warm-up on, as in the published code. t of DF and N of ACS are the numbers of slopes that exist
  (for ACS: at most those of the last N steps). So each softmax has as many terms as its factor says.
- The softmax over time scales each past alpha_max as at t: its logits are -tau t alpha_max(s) / sum |alpha_max| for s <= t.
- W and N count optimizer steps, whatever the interval is. Slopes are per step. No formula depends on the unit of time.
- A task whose measurement is not finite keeps its last ratio. The ratio to a loss of 0 is 1. Constant losses have slope 0 everywhere and give equal weights.

`variant: released` is the arithmetic of the published MFTCoder. L_val(0) is the whole validation before the first step. alpha_max is
the slope of the curve max_k y_k(t), not the largest slope. DF is not clamped at 1. The window of ACS holds N - W + 1 slopes. The result
is omega = softmax_k(K (DF RCS + (1 - DF) ACS)), mixed with 1 / (10 K) if a weight falls below that.
"""

from typing import Any, Literal

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
    latest,
    ratio,
    softmax,
    stratified_rows,
    weighted,
)
from mftcoder.config.balancer import BalancerConfig, computed
from mftcoder.config.section import NonNegativeInt, PositiveFloat, PositiveInt

PUBLISHED_NAMES = {
    "coba_warmup_steps": "warmup_steps",
    "coba_history_length": "window",
    "coba_tau": "tau",
    "coba_update_interval": "update_interval",
    "coba_sample_valid_num": "val_batches",
}
"""Names of the options in the published MFTCoder, accepted here too."""


class CobaOptions(BalancerConfig):
    """Options of CoBa."""

    name: str = "coba"
    val_batches: PositiveInt = 1
    """Validation rows of each task measured at an update: the next ones each time, then from the first again."""
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    warmup_steps: NonNegativeInt | None = computed("one pass over the validation rows, at most a 10th of the run")
    """First optimizer steps, which use the configured weights."""
    window: PositiveInt | None = computed("twice the warm-up")
    """Optimizer steps that slopes are fitted over."""
    tau: PositiveFloat = 5.0
    """Sharpness of the divergence factor."""
    variant: Literal["paper", "released"] = "paper"
    """The formulas of the paper, or the arithmetic of the published MFTCoder."""

    @model_validator(mode="before")
    @classmethod
    def _published_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        doubled = [f"{other} and {name}" for other, name in PUBLISHED_NAMES.items() if {other, name} <= value.keys()]
        if doubled:
            raise ValueError(f"{', '.join(doubled)} are two names of one option. Give one of them")
        return {PUBLISHED_NAMES.get(key, key): inner for key, inner in value.items()}

    @model_validator(mode="after")
    def _window_fits(self) -> "CobaOptions":
        check_window(self.window, self.warmup_steps, self.update_interval)
        return self

    @property
    def first_validation_user(self) -> str | None:
        """`variant: released`."""
        if self.variant == "paper":
            return None
        return "variant: released divides by the losses of the validation before the first step"


class CobaBalancer(Passive):
    """Even convergence of the validation losses. A task whose loss rises loses weight."""

    options_type = CobaOptions
    needs_validation = True

    def __init__(self, config: CobaOptions, facts: RunFacts):
        self._facts = facts
        self._rows = config.val_batches
        self._interval = config.update_interval
        one_pass = -(-int(facts.validation_rows.max(initial=1)) // self._rows) * self._interval
        self._warmup = min(one_pass, facts.total_steps // 10) if config.warmup_steps is None else config.warmup_steps
        self._window = config.window or max(2 * self._warmup, 4 * self._interval)
        self._warmup = min(self._warmup, self._window)
        self._tau = config.tau
        self._released = config.variant == "released"
        self._first = np.full(facts.num_tasks, np.nan)
        self._ratios: list[Float] = []  # of the last N steps, oldest first
        self._slopes: list[Float] = []  # since the warm-up, at most N steps back
        self._worst: list[float] = []  # every alpha_max since the warm-up: DF uses them all

    @property
    def signals(self) -> dict[str, Float]:
        """Slope per step [K]; DF, one number, repeated for each task."""
        slope = self._slopes[-1] if self._slopes else np.full(self._facts.num_tasks, np.nan)
        factor = self._divergence_factor() if self._worst else np.nan
        return {"slope": slope, "divergence_factor": np.full(self._facts.num_tasks, factor)}

    def due(self, step: int) -> bool:
        """After steps 1, 1 + interval, 1 + 2 interval, ...: the first measurement is the reference."""
        return (step - 1) % self._interval == 0

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The next `val_batches` rows of every task."""
        return stratified_rows(self._facts, (step - 1) // self._interval * self._rows, self._rows)

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """The configured weights during the warm-up, then omega."""
        assert validation is not None, "the loop measures the rows that validation_rows names"
        self._first = latest(validation.mean, self._first)
        now = ratio(validation.mean, self._first)
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
        now = softmax(-self._tau * len(worst) * _over(worst, np.abs(worst).sum()))[-1]
        factor = float(len(worst) * now)
        return factor if self._released else min(factor, 1.0)

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """With `variant: released`, take the validation before the first step as L_val(0)."""
        if self._released and step == 0:
            self._first = losses.mean

    def state_dict(self) -> dict[str, Any]:
        """Reference losses, the ratios and slopes of the window, every alpha_max."""
        return {
            "first": self._first.tolist(),
            "ratios": [row.tolist() for row in self._ratios],
            "slopes": [row.tolist() for row in self._slopes],
            "worst": list(self._worst),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = as_array(state["first"])
        self._ratios = [as_array(row) for row in state["ratios"]]
        self._slopes = [as_array(row) for row in state["slopes"]]
        self._worst = list(state["worst"])


def least_squares_slope(values: Float) -> Any:
    """Slope per observation of the line through `values` [n] or [n, K], n >= 2: a number or [K]."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    return np.tensordot(time, values - values.mean(axis=0), axes=1) / (time @ time)


def released_weights(mixture: Float) -> Float:
    """The last two steps of the published code: a softmax over K * omega, mixed with 1 / (10 K) if a weight is below that."""
    weights = softmax(len(mixture) * mixture)
    least = 1 / (10 * len(mixture))
    return weights * (1 - least * len(mixture)) + least if (weights < least).any() else weights


def _over(values: Float, total: Float) -> Float:
    """values / total; 0 where total is 0."""
    return np.divide(values, total, out=np.zeros(np.broadcast(values, total).shape), where=np.asarray(total) > 0)
