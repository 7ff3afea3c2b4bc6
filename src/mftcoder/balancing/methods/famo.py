"""FAMO: Fast Adaptive Multitask Optimization (Liu, Feng, Stone, Liu 2023, arXiv 2306.03792, algorithm 1).

With logits xi, z = softmax(xi) and losses l, a step uses the weights c z_k / l_k, c = (sum_k z_k / l_k)^-1. This is the direction
that lowers all log losses at the same rate. After the step

    delta_k = log l_k(t) - log l_k(t + 1)
    xi <- xi - beta (J delta + gamma xi),        J the Jacobian of softmax at the z that made the step

so a task whose log loss fell more than the others' loses weight. beta is `learning_rate`, gamma is `weight_decay`.

`variant: released` updates xi with Adam, as the authors' code does. The plain step is three orders of magnitude smaller on
language-model losses, where the log loss changes by about 1e-3 in a step.

Choices made here: l(t) and l(t + 1) are the losses of two successive observations. The paper takes one batch before and after the
step, which costs a second forward pass. So the weights of a step use the losses of the step before, and with `signal: train` the J is
one step younger than delta. The first observation has nothing to be compared with and changes no logit. An absent task keeps its last
loss, so its delta is 0.
"""

from typing import Literal

import numpy as np

from mftcoder.balancing.base import (
    Float,
    LossReader,
    RunFacts,
    SignalOptions,
    TaskLosses,
    TaskWeights,
    jacobian_product,
    latest,
    softmax,
    weighted,
)
from mftcoder.config.balancer import computed
from mftcoder.config.section import NonNegativeFloat, PositiveFloat, PositiveInt

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
SMALLEST_LOSS = 1e-8  # keeps the logarithm finite for a solved task


class FamoOptions(SignalOptions):
    """Options of FAMO."""

    name: str = "famo"
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    learning_rate: PositiveFloat = 0.025
    """beta: step size of the logits."""
    weight_decay: NonNegativeFloat | None = computed("0.001; 0.01 with variant: released")
    """gamma: decay of the logits."""
    variant: Literal["paper", "released"] = "paper"
    """The formulas of the paper, or the arithmetic of the authors' code."""


class FamoBalancer(LossReader):
    """Lowers all tasks' log losses at the same rate."""

    options_type = FamoOptions
    remembered = ("logits", "losses", "moments", "updates")

    def __init__(self, config: FamoOptions, facts: RunFacts):
        super().__init__(config, facts, interval=config.update_interval)
        self._adam = config.variant == "released"
        self._rate = config.learning_rate
        self._decay = config.weight_decay if config.weight_decay is not None else (0.01 if self._adam else 0.001)
        self._logits = np.zeros(facts.num_tasks)
        self._losses = np.full(facts.num_tasks, np.nan)
        self._moments = np.zeros((2, facts.num_tasks))
        self._updates = 0

    @property
    def signals(self) -> dict[str, Float]:
        """The logits xi."""
        return {"logit": self._logits.copy()}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """One step on the logits, then weights in proportion to z / loss."""
        losses = np.maximum(latest(self._losses, self.measured(train, validation)), SMALLEST_LOSS)
        if np.isfinite(self._losses).any():
            self._move_logits(np.nan_to_num(np.log(self._losses) - np.log(losses), nan=0.0))
        self._losses = losses
        typical = (
            losses[np.isfinite(losses)].mean() if np.isfinite(losses).any() else 1.0
        )  # stands in for a task without a loss yet
        return weighted(self.facts, softmax(self._logits) / np.where(np.isfinite(losses), losses, typical))

    def _move_logits(self, delta: Float) -> None:
        gradient = jacobian_product(softmax(self._logits), delta) + self._decay * self._logits
        self._updates += 1
        self._logits = self._logits - self._rate * (self._adam_direction(gradient) if self._adam else gradient)

    def _adam_direction(self, gradient: Float) -> Float:
        first, second = ADAM_BETAS
        self._moments = np.stack(
            [
                first * self._moments[0] + (1 - first) * gradient,
                second * self._moments[1] + (1 - second) * gradient**2,
            ]
        )
        mean = self._moments[0] / (1 - first**self._updates)
        square = self._moments[1] / (1 - second**self._updates)
        return mean / (np.sqrt(square) + ADAM_EPSILON)
