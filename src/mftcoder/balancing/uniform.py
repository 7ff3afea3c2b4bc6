"""Fixed weights: what the config says, whatever the losses do."""

from typing import Any

from mftcoder.balancing.base import Float, TaskLosses, TaskWeights


class UniformBalancer:
    """Keeps the configured task weights (all equal unless told otherwise)."""

    needs_validation = False

    def __init__(self, weights: Float):
        self._weights = TaskWeights(weights)

    def observe(self, step: int, train: TaskLosses, validation: TaskLosses | None) -> TaskWeights:
        """The configured weights."""
        return self._weights

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""
