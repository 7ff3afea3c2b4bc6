"""LBTW: Loss-Balanced Task Weighting (Liu, Liang, Gitter 2019, AAAI student abstract, algorithm 1).

    w_k(t) = (L_k(t) / L_k(0))^alpha

so a task whose loss has fallen little keeps its weight and a fast one loses it; `alpha` is 0.5 unless given. L_k(0) is the first
loss that is seen of the task, and is taken anew every `window` steps if that is given (the paper does so at each epoch's first
batch). An absent task keeps its last ratio.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import Float, RunFacts, TaskLosses, TaskWeights, as_array, as_lists, latest, weighted
from mftcoder.balancing.signal import LossReader
from mftcoder.config.schema import BalancerConfig


class LbtwBalancer(LossReader):
    """Weight by how much of its first loss a task still has."""

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        super().__init__(config, facts)
        self._alpha = 0.5 if config.alpha is None else config.alpha
        self._renewal = config.window
        self._reference, self._last = np.full((2, facts.num_tasks), np.nan)
        self._renewed_at = 0

    @property
    def signals(self) -> dict[str, Float]:
        """The ratio of the last loss to the reference."""
        return {"loss_ratio": self._last / self._reference}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """(loss / first loss)^alpha."""
        now = self.measured(train, validation)
        self._last = latest(self._last, now)
        if self._renewal is not None and step - self._renewed_at > self._renewal:
            self._reference, self._renewed_at = self._last.copy(), step
        self._reference = latest(now, self._reference)
        ratios = np.nan_to_num(self._last / self._reference, nan=1.0)
        return weighted(self.facts, np.maximum(ratios, 1e-8) ** self._alpha)

    def state_dict(self) -> dict[str, Any]:
        """Reference and last losses, and when the reference was taken."""
        return {**as_lists(reference=self._reference, last=self._last), "renewed_at": self._renewed_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._reference, self._last = as_array(state["reference"]), as_array(state["last"])
        self._renewed_at = state["renewed_at"]
