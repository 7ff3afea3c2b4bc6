"""Fixed weights: those of the config, whatever the losses do."""

from mftcoder.balancing.base import Float, Passive, RunFacts, TaskLosses, TaskWeights
from mftcoder.config.balancer import BalancerConfig


class UniformBalancer(Passive):
    """Keeps the configured task weights (default: all equal)."""

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        self._weights = TaskWeights(facts.weights)

    def due(self, step: int) -> bool:
        """Never: there is nothing to learn from the losses."""
        return False

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        return self._weights
