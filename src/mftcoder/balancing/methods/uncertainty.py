"""Uncertainty weighting (Kendall, Gal, Cipolla 2018, arXiv 1705.07115, equation 10 and the log-variance form below it).

With s_k = log sigma_k^2 the objective is sum_k exp(-s_k) L_k + s_k / 2, so the weights are exp(-s_k) and

    s_k <- s_k - learning_rate * (1/2 - exp(-s_k) L_k)

At a constant loss s_k settles at log(2 L_k), which is a weight of 1 / (2 L_k).

Choices made here: s starts at 0 and is learned by plain gradient descent, apart from the model's own optimizer. The weights are
normalized to sum 1, so the method sets the proportions and the learning rate schedule sets the size of the step. An absent task
keeps its s.
"""

import numpy as np

from mftcoder.balancing.base import Float, LossReader, RunFacts, SignalOptions, TaskLosses, TaskWeights, weighted
from mftcoder.config.section import PositiveFloat, PositiveInt


class UncertaintyOptions(SignalOptions):
    """Options of uncertainty weighting."""

    name: str = "uncertainty"
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    learning_rate: PositiveFloat = 0.025
    """Step size of the log variances s."""


class UncertaintyBalancer(LossReader):
    """Learns a noise level for each task and weights by its inverse."""

    options_type = UncertaintyOptions
    remembered = ("log_variance",)

    def __init__(self, config: UncertaintyOptions, facts: RunFacts):
        super().__init__(config, facts, interval=config.update_interval)
        self._rate = config.learning_rate
        self._log_variance = np.zeros(facts.num_tasks)

    @property
    def signals(self) -> dict[str, Float]:
        """The log variances s."""
        return {"log_variance": self._log_variance.copy()}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """One gradient step on the log variances, then weights exp(-s)."""
        gradient = 0.5 - np.exp(-self._log_variance) * self.measured(train, validation)
        self._log_variance = self._log_variance - self._rate * np.where(np.isfinite(gradient), gradient, 0.0)
        return weighted(self.facts, np.exp(-self._log_variance))
