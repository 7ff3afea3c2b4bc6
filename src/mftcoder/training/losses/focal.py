"""The focal losses FL1 (per sample) and FL2 (per task) of the MFTCoder paper (arXiv 2311.02303), which weight by difficulty.

For a group g (a sample or a task) with token losses l_i, the normalization's coefficients c_i and p_i = exp(-l_i):

    P_g = sum c_i p_i / sum c_i        Q_g = sum c_i l_i        objective = sum_g (1 - P_g)^gamma Q_g

c is constant within a sample, and also within a task except with the sample normalizations, so P_g is the mean probability of
trained tokens, averaged like the losses. By default the factor is detached and has no gradient. Otherwise

    d objective / d l_i = c_i (1 - P_g)^gamma + gamma (1 - P_g)^(gamma - 1) (c_i p_i / sum c) Q_g

In both cases the gradient of the step is that of a sum of token losses with other coefficients; this file computes them. A task's
sums cover the whole step, all micro-batches and ranks, so they need a forward pass of their own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mftcoder.kernels.context_group import ALONE, ContextGroup

SMALLEST = 1e-30  # keeps groups without tokens or weight finite


@dataclass(frozen=True)
class Reweighed:
    """Coefficients whose weighted sum of losses has the gradient of another objective (focal, pairs), and the value of that."""

    coefficients: Tensor  # [N]
    value: Tensor  # scalar
    loss_sum: Tensor | None = None  # f64 [K] what a task's mean loss is the sum of; None: the token losses
    rewards: Tensor | None = None  # f64 [6, K] sums of a preference task, see losses/preference.py
    rollouts: Tensor | None = None  # f64 [5, K] sums of a task of sampled answers, see losses/rollouts.py


class Focus(Protocol):
    """Turns the coefficients of a micro-batch's N trained tokens into others, given their losses."""

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """All tensors are [N] and without gradient. `samples` are indices of the batch's samples, `tasks` of tasks."""


@dataclass(frozen=True)
class SampleFocus:
    """FL1: weight each sample by its mean probability."""

    gamma: float
    detach: bool
    context: ContextGroup = ALONE

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """A sample lies in one micro-batch, so the sums over all slices of the batch's rows are complete."""
        sums = self.context.sum(group_sums(losses, coefficients, samples, num_samples))
        return reweigh(losses, coefficients, samples, sums, self.gamma, detach=self.detach)


@dataclass(frozen=True)
class TaskFocus:
    """FL2: weight each task by its mean probability in the whole step."""

    gamma: float
    detach: bool
    sums: Tensor  # [3, K] of the whole step, see group_sums

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """The value is this batch's part of the objective."""
        return reweigh(losses, coefficients, tasks, self.sums, self.gamma, detach=self.detach)


def group_sums(losses: Tensor, coefficients: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums [3, G] of c, c p and c l over each group, float64."""
    weights = coefficients.double()
    columns = torch.stack([weights, weights * torch.exp(-losses.double()), weights * losses.double()])
    return torch.zeros(3, count, dtype=torch.float64, device=losses.device).index_add_(1, groups, columns)


def factor(probability: Tensor, gamma: float) -> Tensor:
    """(1 - P)^gamma."""
    return (1 - probability).clamp_min(SMALLEST) ** gamma


def reweigh(
    losses: Tensor, coefficients: Tensor, groups: Tensor, sums: Tensor, gamma: float, *, detach: bool
) -> Reweighed:
    """Apply the formulas above to tokens [N] of groups [N] with sums [3, G]."""
    total, probability_sum, loss_sum = sums
    probability = probability_sum / total.clamp_min(SMALLEST)
    weights = coefficients.double()
    focal = weights * factor(probability, gamma)[groups]
    value = (focal * losses.double()).sum()
    if not detach:
        steepness = gamma * (1 - probability).clamp_min(SMALLEST) ** (gamma - 1) * loss_sum / total.clamp_min(SMALLEST)
        focal = focal + steepness[groups] * weights * torch.exp(-losses.double())
    return Reweighed(focal.to(coefficients.dtype), value)
