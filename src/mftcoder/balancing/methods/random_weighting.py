"""RLW: random loss weighting (Lin, Ye, Zhang, Tsang 2022, arXiv 2111.10603). A baseline that any balancer should beat.

At each update the weights are softmax(z / T). z is standard normal, T is `temperature`. The draw depends on the seed and the step
only, so a resumed run draws the same numbers.
"""

import numpy as np

from mftcoder.balancing.base import Float, Passive, RunFacts, TaskLosses, TaskWeights, softmax, weighted
from mftcoder.config.balancer import BalancerConfig
from mftcoder.config.section import PositiveFloat, PositiveInt


class RandomOptions(BalancerConfig):
    """Options of random weighting."""

    name: str = "random"
    update_interval: PositiveInt = 1
    """Optimizer steps between updates of the weights."""
    temperature: PositiveFloat = 1.0
    """T: a large value makes the weights more equal."""


class RandomBalancer(Passive):
    """New random weights at every update."""

    options_type = RandomOptions

    def __init__(self, config: RandomOptions, facts: RunFacts):
        self._facts = facts
        self._interval = config.update_interval
        self._temperature = config.temperature

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Softmax of normal numbers drawn from (seed, step)."""
        draws = np.random.default_rng([self._facts.seed, step]).standard_normal(self._facts.num_tasks)
        return weighted(self._facts, softmax(draws / self._temperature))
