"""RLW: random loss weighting (Lin, Ye, Zhang, Tsang 2022, arXiv 2111.10603): a baseline that any balancer should beat.

At each update the weights are softmax(z / T) with z standard normal; `temperature` is T (1). The draw depends on the seed and the
step alone, so a resumed run draws the same.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import Float, Passive, RunFacts, TaskLosses, TaskWeights, softmax, weighted
from mftcoder.config.schema import BalancerConfig


class RandomBalancer(Passive):
    """New random weights at every update."""

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        self._facts = facts
        self._interval = config.update_interval or 1
        self._temperature = config.temperature or 1.0

    def due(self, step: int) -> bool:
        """After each interval."""
        return step % self._interval == 0

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Softmax of normal draws made from (seed, step)."""
        draws = np.random.default_rng([self._facts.seed, step]).standard_normal(self._facts.num_tasks)
        return weighted(self._facts, softmax(draws / self._temperature))

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""
