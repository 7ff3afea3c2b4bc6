"""The load-balancing loss of a mixture of experts as a part of a step's objective.

Goes in: the routers' logits of a micro-batch and which of its positions are no padding. Comes out: transformers' own value of

    E * sum_e f_e * P_e      f_e: choices of expert e a token, P_e: its mean probability   (arXiv 2101.03961, equations 4 to 6)

over the micro-batch's tokens and all layers. f and P are both means, so the value of a step is no sum over tokens and cannot be
had exactly from its parts: a step takes the mean of its micro-batches' values over all ranks, weighted by their tokens. It is the
same however often the step is split as long as the parts route alike, it does not grow with their number, padding is never
counted, and a step of one micro-batch is exactly the published loss. Ranks that share rows have the logits of all their slices
and count the whole rows each, so that the mean over ranks is that of the rows.
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
        """None for a model without routers, and for families that publish none (DeepSeek-V3 balances by biases)."""
        formula = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
        coefficient = getattr(causal_lm, "router_aux_loss_coef", None)
        if formula is None or coefficient is None:
            return None
        return cls(formula, int(causal_lm.num_experts), int(causal_lm.num_experts_per_tok), float(coefficient))

    def __call__(self, router_logits: tuple[Tensor, ...], real: Tensor) -> Tensor:
        """Scalar; logits [B * L, E] of each layer with experts, `real` [B, L] false at padding."""
        return self.formula(router_logits, self.num_experts, self.experts_per_token, real)


class RouterTerm:
    """What the routers add to one step, micro-batch by micro-batch."""

    def __init__(self, router: RouterLoss | None, coefficient: float | None, data: StepData, backend: Backend):
        """`coefficient` None takes the published one. The step's tokens over all ranks come from the plan: nothing is exchanged."""
        published = router.published_coefficient if router else 0.0
        self._coefficient = published if coefficient is None else coefficient
        self._sum: Tensor | None = None
        if router is not None and self._coefficient > 0:
            self._tokens = max(data.counts.positions * backend.context.size, 1)  # ranks that share rows count them each
            self._sum = torch.zeros(1, dtype=torch.float64, device=backend.device)
            self._backend = backend

    def weight(self, batch: PackedBatch) -> float:
        """Factor of the micro-batch's value in the objective; 0 without routers."""
        return 0.0 if self._sum is None else self._coefficient * _real_tokens(batch) / self._tokens

    def add(self, batch: PackedBatch, value: Tensor | None) -> None:
        """Count the micro-batch's value in."""
        if value is not None and self._sum is not None:
            self._sum += value.double() * (_real_tokens(batch) / self._tokens)

    def mean(self) -> Tensor | None:
        """The step's value over all ranks, before the coefficient; None without routers."""
        return None if self._sum is None else self._backend.sum_over_ranks(self._sum)


def _real_tokens(batch: PackedBatch) -> int:
    return int((batch.task_ids >= 0).sum())
