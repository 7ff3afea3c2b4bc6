"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich 2018, arXiv 1711.02257, equations 1 and 2).

With g_k the norm of task k's unweighted gradient on the last shared layer, G_k = w_k g_k, and the relative inverse training rate
r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)), the weights follow the gradient of

    L_grad = sum_k | G_k - mean_j G_j * r_k^alpha |        (the second term held constant)

that is w_k <- w_k - learning_rate * sign(G_k - target_k) * g_k. They are then scaled back to sum K.

Choices made here: the shared layer is the decoder layer `layer`, of which the trained weights count. The step on w is plain gradient
descent. A weight stays at or above 1e-3. The norms are measured only every `update_interval` steps, because they cost a backward pass
through the head for each task. An absent task keeps its weight and its last ratio. The ratio to a loss of 0 is 1.
"""

from typing import Any

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
from mftcoder.config.section import NonNegativeFloat, PositiveFloat, PositiveInt

SMALLEST_WEIGHT = 1e-3


class GradNormOptions(SignalOptions):
    """Options of GradNorm."""

    reads_gradients = True

    name: str = "gradnorm"
    update_interval: PositiveInt = 10
    """Optimizer steps between updates of the weights."""
    alpha: NonNegativeFloat = 1.5
    """Strength of the pull towards tasks that train more slowly; 0 gives equal gradient norms."""
    learning_rate: PositiveFloat = 0.025
    """Step size of the weights."""
    layer: int = -1
    """Decoder layer whose gradients are compared; -1 is the last."""


class GradNormBalancer(LossReader):
    """Equal gradient norms on one shared layer, with more for the tasks that train more slowly."""

    options_type = GradNormOptions
    remembered = ("weights", "first", "last", "norms")

    def __init__(self, config: GradNormOptions, facts: RunFacts):
        super().__init__(config, facts, interval=config.update_interval)
        self._alpha = config.alpha
        self._rate = config.learning_rate
        self._layer = config.layer
        self._weights = np.ones(facts.num_tasks)
        self._first, self._last, self._norms = np.full((3, facts.num_tasks), np.nan)

    @property
    def signals(self) -> dict[str, Float]:
        """The last measured gradient norms."""
        return {"gradient_norm": self._norms.copy()}

    def gradient_layer(self, step: int) -> int | None:
        """`layer`, at every update."""
        return self._layer

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """One gradient step on the weights of the tasks whose norm is known."""
        assert gradient_norms is not None, "the loop measures at gradient_layer"
        now = self.measured(train, validation)
        self._first, self._last = latest(now, self._first), latest(self._last, now)
        self._norms = latest(self._norms, gradient_norms)
        known = np.isfinite(gradient_norms) & np.isfinite(self._last)
        if known.any():
            self._descend(known)
        return weighted(self.facts, self._weights)

    def _descend(self, known: "np.ndarray[Any, np.dtype[np.bool_]]") -> None:
        ratios = ratio(self._last[known], self._first[known])
        pull = ratio(ratios, np.full_like(ratios, ratios.mean())) ** self._alpha
        weighted_norms = self._weights[known] * self._norms[known]
        direction = np.sign(weighted_norms - weighted_norms.mean() * pull) * self._norms[known]
        self._weights = self._weights.copy()
        self._weights[known] = np.maximum(self._weights[known] - self._rate * direction, SMALLEST_WEIGHT)
        self._weights *= len(self._weights) / self._weights.sum()
