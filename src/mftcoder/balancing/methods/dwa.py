"""DWA: Dynamic Weight Average (Liu, Johns, Davison 2019, arXiv 1803.10704, equation 7).

    r_k(t - 1) = L_k(t - 1) / L_k(t - 2),        w_k(t) = K exp(r_k / T) / sum_j exp(r_j / T),        w_k = 1 for t = 1, 2

where L_k(t) is the mean loss of period t: a task whose loss falls more slowly gains. `temperature` is T (2). A period is an epoch
in the paper; here it is `update_interval` steps, a twentieth of the run unless given, because fine-tuning has few epochs, and
its mean is over the period's tokens. A task absent from a whole period keeps its last mean.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import (
    Float,
    RunFacts,
    TaskLosses,
    TaskWeights,
    as_array,
    as_lists,
    latest,
    softmax,
    weighted,
)
from mftcoder.balancing.signal import LossReader
from mftcoder.config.schema import BalancerConfig


class DwaBalancer(LossReader):
    """More weight to tasks whose loss falls more slowly from period to period."""

    def __init__(self, config: BalancerConfig, facts: RunFacts):
        super().__init__(config, facts, default_interval=max(1, facts.total_steps // 20))
        self._temperature = config.temperature or 2.0
        self._before, self._last = np.full((2, facts.num_tasks), np.nan)

    @property
    def signals(self) -> dict[str, Float]:
        """The ratio of the last two periods' losses."""
        return {"loss_ratio": self._last / self._before}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Softmax over the tasks of loss ratio / T; equal until two periods are known."""
        self._before, self._last = self._last, latest(self._last, self.measured(train, validation))
        ratios = np.nan_to_num(self._last / self._before, nan=1.0)
        return weighted(self.facts, softmax(ratios / self._temperature))

    def state_dict(self) -> dict[str, Any]:
        """The last two periods' losses."""
        return as_lists(before=self._before, last=self._last)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._before, self._last = as_array(state["before"]), as_array(state["last"])
