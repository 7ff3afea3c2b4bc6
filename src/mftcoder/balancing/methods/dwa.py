"""DWA: Dynamic Weight Average (Liu, Johns, Davison 2019, arXiv 1803.10704, equation 7).

    r_k(t - 1) = L_k(t - 1) / L_k(t - 2),        w_k(t) = K exp(r_k / T) / sum_j exp(r_j / T),        w_k = 1 for t = 1, 2

where L_k(t) is the mean loss of period t and T is `temperature`. A task whose loss falls more slowly gains weight.

Choices made here: a period is `update_interval` steps, because fine-tuning has few epochs (in the paper it is an epoch). Its mean is
taken over the period's tokens. A task that is absent from a whole period keeps its last mean. The ratio to a loss of 0 is 1.
"""

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
    softmax,
    weighted,
)
from mftcoder.config.balancer import computed
from mftcoder.config.section import PositiveFloat, PositiveInt


class DwaOptions(SignalOptions):
    """Options of DWA."""

    name: str = "dwa"
    update_interval: PositiveInt | None = computed("a 20th of the run")
    """Optimizer steps of a period; the weights change after each."""
    temperature: PositiveFloat = 2.0
    """T: a large value makes the weights more equal."""


class DwaBalancer(LossReader):
    """More weight to tasks whose loss falls more slowly from period to period."""

    options_type = DwaOptions
    remembered = ("before", "last")

    def __init__(self, config: DwaOptions, facts: RunFacts):
        super().__init__(config, facts, interval=config.update_interval or max(1, facts.total_steps // 20))
        self._temperature = config.temperature
        self._before, self._last = np.full((2, facts.num_tasks), np.nan)

    @property
    def signals(self) -> dict[str, Float]:
        """The ratio of the last two periods' losses."""
        return {"loss_ratio": ratio(self._last, self._before)}

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """Softmax of loss ratio / T over the tasks. The weights are equal until two periods are known."""
        self._before, self._last = self._last, latest(self._last, self.measured(train, validation))
        ratios = np.nan_to_num(ratio(self._last, self._before), nan=1.0)
        return weighted(self.facts, softmax(ratios / self._temperature))
