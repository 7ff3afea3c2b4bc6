"""Weighting by difficulty: the focal losses FL1 (of each sample) and FL2 (of each task) of the MFTCoder paper (arXiv 2311.02303).

For a group g (a sample, a task) with token losses l_i, coefficients c_i of the normalisation in force and p_i = exp(-l_i):

    P_g = sum c_i p_i / sum c_i        Q_g = sum c_i l_i        objective = sum_g (1 - P_g)^gamma Q_g

c is constant within a sample, and within a task up to the sample means of the sample normalisations, so P_g is the mean
trained-token probability, averaged as the losses are. With the factor detached its gradient is left out (the default); else

    d objective / d l_i = c_i (1 - P_g)^gamma + gamma (1 - P_g)^(gamma - 1) (c_i p_i / sum c) Q_g

Either way the step's gradient is that of a sum of token losses with other coefficients, which are made here. A task's sums run
over the whole step, all its micro-batches and ranks, so they need a forward pass before the step's own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mftcoder.kernels.context_group import ALONE, ContextGroup

SMALLEST = 1e-30  # keeps empty and weightless groups finite


@dataclass(frozen=True)
class Reweighed:
    """Coefficients whose weighted sum of losses has the focal gradient, and the focal objective's own value."""

    coefficients: Tensor  # [N]
    value: Tensor  # scalar


class Focus(Protocol):
    """Turns the coefficients of a micro-batch's N trained tokens into focal ones, given their losses."""

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """All [N] and without gradient; `samples` numbers the batch's samples from 0 on, `tasks` from 0 to K - 1."""
        ...


@dataclass(frozen=True)
class SampleFocus:
    """FL1: every sample by its own mean probability."""

    gamma: float
    detach: bool
    context: ContextGroup = ALONE

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """Samples never straddle micro-batches, so the batch's own sums, over all slices of its rows, are whole."""
        sums = self.context.sum(group_sums(losses, coefficients, samples, num_samples))
        return reweigh(losses, coefficients, samples, sums, self.gamma, detach=self.detach)


@dataclass(frozen=True)
class TaskFocus:
    """FL2: every task by its mean probability in the whole step."""

    gamma: float
    detach: bool
    sums: Tensor  # [3, K] of the whole step, see group_sums

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """The value is this batch's share of the objective."""
        return reweigh(losses, coefficients, tasks, self.sums, self.gamma, detach=self.detach)


def group_sums(losses: Tensor, coefficients: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums [3, G] over each group of c, c p and c l, in float64."""
    weights = coefficients.double()
    columns = torch.stack([weights, weights * torch.exp(-losses.double()), weights * losses.double()])
    return torch.zeros(3, count, dtype=torch.float64, device=losses.device).index_add_(1, groups, columns)


def factor(probability: Tensor, gamma: float) -> Tensor:
    """(1 - P)^gamma."""
    return (1 - probability).clamp_min(SMALLEST) ** gamma


def reweigh(
    losses: Tensor, coefficients: Tensor, groups: Tensor, sums: Tensor, gamma: float, *, detach: bool
) -> Reweighed:
    """The module's formulas for tokens [N] of groups [N] with sums [3, G]."""
    total, probability_sum, loss_sum = sums
    probability = probability_sum / total.clamp_min(SMALLEST)
    weights = coefficients.double()
    focal = weights * factor(probability, gamma)[groups]
    value = (focal * losses.double()).sum()
    if not detach:
        steepness = gamma * (1 - probability).clamp_min(SMALLEST) ** (gamma - 1) * loss_sum / total.clamp_min(SMALLEST)
        focal = focal + steepness[groups] * weights * torch.exp(-losses.double())
    return Reweighed(focal.to(coefficients.dtype), value)
