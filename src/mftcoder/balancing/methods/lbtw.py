"""LBTW: Loss-Balanced Task Weighting (Liu, Liang, Gitter 2019, AAAI student abstract, algorithm 1).

    w_k(t) = (L_k(t) / L_k(0))^alpha

A task whose loss has fallen little keeps its weight, a task whose loss has fallen much loses weight. L_k(0) is the first loss of the
task that is measured. With `window` it is measured again every so many steps (in the paper, at the first batch of each epoch). An
absent task keeps its last ratio. The ratio to a loss of 0 is 1.
"""

import numpy as np

from mftcoder.balancing.base import (
    Float,
    LossReader,
    RunFacts,
    SignalOptions,
    TaskLosses,
    TaskWeights,
    latest,
    ratio,
    weighted,
)
from mftcoder.config.section import NonNegativeFloat, PositiveInt


class LbtwOptions(SignalOptions):
    """Options of LBTW."""

    name: str = "lbtw"
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    alpha: NonNegativeFloat = 0.5
    """Exponent of the loss ratio; 0 gives equal weights."""
    window: PositiveInt | None = None
    """Optimizer steps after which L(0) is measured again; null for never."""


class LbtwBalancer(LossReader):
    """Weight by how much of its first loss a task still has."""

    options_type = LbtwOptions
    remembered = ("reference", "last", "renewed_at")

    def __init__(self, config: LbtwOptions, facts: RunFacts):
        super().__init__(config, facts, interval=config.update_interval)
        self._alpha = config.alpha
        self._renewal = config.window
        self._reference, self._last = np.full((2, facts.num_tasks), np.nan)
        self._renewed_at = 0

    @property
    def signals(self) -> dict[str, Float]:
        """The ratio of the last loss to the reference."""
        return {"loss_ratio": ratio(self._last, self._reference)}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """(loss / first loss)^alpha."""
        now = self.measured(train, validation)
        self._last = latest(self._last, now)
        if self._renewal is not None and step - self._renewed_at > self._renewal:
            self._reference, self._renewed_at = self._last.copy(), step
        self._reference = latest(now, self._reference)
        ratios = np.nan_to_num(ratio(self._last, self._reference), nan=1.0)
        return weighted(self.facts, np.maximum(ratios, 1e-8) ** self._alpha)
