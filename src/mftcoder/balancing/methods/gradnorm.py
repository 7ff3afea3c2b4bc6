"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich 2018, arXiv 1711.02257, equations 1 and 2).

With g_k the norm of task k's unweighted gradient on the last shared layer, G_k = w_k g_k, and the relative inverse training rate
r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)), the weights follow the gradient of

    L_grad = sum_k | G_k - mean_j G_j * r_k^alpha |        (the second term held constant)

that is w_k <- w_k - learning_rate * sign(G_k - target_k) * g_k, and are scaled back to sum K. `alpha` is 1.5, `learning_rate`
0.025 unless given. Decided here: the last shared layer is the last decoder layer (its trained weights); the step on w is plain
gradient descent; a weight is kept at or above 1e-3; the norms are measured every `update_interval` steps (10), because they cost
a backward pass through the head per task; an absent task keeps its weight and its last ratio.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import Float, RunFacts, TaskLosses, TaskWeights, as_array, as_lists, latest, weighted
from mftcoder.balancing.signal import LossReader
from mftcoder.config.schema import BalancerConfig

SMALLEST_WEIGHT = 1e-3


class GradNormBalancer(LossReader):
    """Equal gradient norms on the last shared layer, pulled towards the tasks that train more slowly."""

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        super().__init__(config, facts, default_interval=10)
        self._alpha = 1.5 if config.alpha is None else config.alpha
        self._rate = config.learning_rate or 0.025
        self._weights = np.ones(facts.num_tasks)
        self._first, self._last, self._norms = np.full((3, facts.num_tasks), np.nan)

    @property
    def signals(self) -> dict[str, Float]:
        """The last measured gradient norms."""
        return {"gradient_norm": self._norms.copy()}

    def needs_gradients(self, step: int) -> bool:
        """At every update."""
        return True

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """One gradient step on the weights of the tasks whose norm is known."""
        assert gradient_norms is not None, "the loop measures what needs_gradients asks for"
        now = self.measured(train, validation)
        self._first, self._last = latest(now, self._first), latest(self._last, now)
        self._norms = latest(self._norms, gradient_norms)
        known = np.isfinite(gradient_norms) & np.isfinite(self._last)
        if known.any():
            self._descend(known)
        return weighted(self.facts, self._weights)

    def _descend(self, known: "np.ndarray[Any, np.dtype[np.bool_]]") -> None:
        ratios = self._last[known] / self._first[known]
        pull = (ratios / ratios.mean()) ** self._alpha
        weighted_norms = self._weights[known] * self._norms[known]
        direction = np.sign(weighted_norms - weighted_norms.mean() * pull) * self._norms[known]
        self._weights = self._weights.copy()
        self._weights[known] = np.maximum(self._weights[known] - self._rate * direction, SMALLEST_WEIGHT)
        self._weights *= len(self._weights) / self._weights.sum()

    def state_dict(self) -> dict[str, Any]:
        """Weights, first and last losses, last norms."""
        return as_lists(weights=self._weights, first=self._first, last=self._last, norms=self._norms)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._weights, self._first = as_array(state["weights"]), as_array(state["first"])
        self._last, self._norms = as_array(state["last"]), as_array(state["norms"])
