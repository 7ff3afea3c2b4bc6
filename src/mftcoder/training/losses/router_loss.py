"""The load-balancing loss of a mixture of experts as a part of a step's objective.

For a micro-batch it is the value that transformers computes, over all tokens (without padding) and all layers:

    E * sum_e f_e * P_e      f_e: how often a token chooses expert e, P_e: its mean probability   (arXiv 2101.03961, equations 4 to 6)

f and P are both means, so the value of a step is not a sum over tokens, and cannot be computed exactly from its parts. A step takes
the mean of its micro-batches' values over all ranks, weighted by their tokens. That does not grow with the number of parts, is the
same for each split whose parts route alike, and for a single micro-batch it is exactly the published loss. Ranks that share rows have
the logits of all slices, and each counts the whole rows, so that the mean over ranks is that of the rows.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mftcoder.data.batches.loader import PackedBatch, StepData
from mftcoder.training.backends.base import Backend


@dataclass(frozen=True)
class RouterLoss:
    """The loss of one model's routers."""

    formula: Callable[..., Tensor]  # of the model's module in transformers
    num_experts: int
    experts_per_token: int
    published_coefficient: float

    @classmethod
    def of(cls, causal_lm: Any) -> "RouterLoss | None":
        """The loss of this model; None for one without routers, or without such a loss (DeepSeek-V3 balances with biases)."""
        formula = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
        coefficient = getattr(causal_lm, "router_aux_loss_coef", None)
        if formula is None or coefficient is None:
            return None
        return cls(formula, int(causal_lm.num_experts), int(causal_lm.num_experts_per_tok), float(coefficient))

    def __call__(self, router_logits: tuple[Tensor, ...], real: Tensor) -> Tensor:
        """The loss, a scalar. Logits [B * L, E] of each layer with experts; `real` [B, L] is false at padding."""
        return self.formula(router_logits, self.num_experts, self.experts_per_token, real)


class RouterTerm:
    """The routers' part of one step's objective, added up over its micro-batches."""

    def __init__(self, router: RouterLoss | None, coefficient: float | None, data: StepData, backend: Backend):
        """`coefficient`: None takes the published one. The step's token count over all ranks is known without communication."""
        published = router.published_coefficient if router else 0.0
        self._coefficient = published if coefficient is None else coefficient
        self._sum: Tensor | None = None
        if router is not None and self._coefficient > 0:
            self._tokens = max(
                data.counts.positions * backend.group.context.size, 1
            )  # each of the ranks that share rows counts them
            self._sum = torch.zeros(1, dtype=torch.float64, device=backend.device)
            self._backend = backend

    def weight(self, batch: PackedBatch) -> float:
        """The factor of the micro-batch's value in the objective; 0 without routers."""
        return 0.0 if self._sum is None else self._coefficient * _real_tokens(batch) / self._tokens

    def add(self, batch: PackedBatch, value: Tensor | None) -> None:
        if value is not None and self._sum is not None:
            self._sum += value.double() * (_real_tokens(batch) / self._tokens)

    def mean(self) -> Tensor | None:
        """The step's value over all ranks, without the coefficient; None without routers."""
        return None if self._sum is None else self._backend.group.sum_over_ranks(self._sum)


def _real_tokens(batch: PackedBatch) -> int:
    return int((batch.task_ids >= 0).sum())
