"""The losses over pairs of answers, as coefficients a token: signed, so that the weighted cross entropy carries them.

With S the summed log-probability of an answer's n tokens, R that of the reference, N the pairs of a task in the step:

    d = (S_c - R_c) - (S_r - R_r)              c: the chosen answer, r: the rejected one
    dpo     -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)                  e: label smoothing
    ipo     ((S_c - R_c) / n_c - (S_r - R_r) / n_r - 1 / (2 beta))^2
    orpo    -beta log sigmoid(log odds(S_c / n_c) - log odds(S_r / n_r)) + token mean of the chosen answers' loss
    simpo   dpo's formula of S_c / n_c - S_r / n_r - gamma / beta
    kto     desirable: v (1 - sigmoid(beta (S - R - z))), undesirable: v (1 - sigmoid(beta (z - S + R))), v: its weight

A pair lies in one row, so S is complete after one product with the head without gradients. The gradient of a pair's loss with
respect to S is the negative coefficient of each token of that answer. KTO's z is the mean of S - R over the step's answers to other
prompts, at least 0 and without gradient; it needs a forward pass of its own over the step, like the focal loss of tasks. With rpo_alpha,
dpo adds that many times the token mean of the chosen answers' loss in the step, whose count is known from the plan.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from mftcoder.config.kinds import DpoKind, IpoKind, KtoKind, OrpoKind, PreferenceKind, SimpoKind
from mftcoder.data.batches.loader import PackedBatch, StepCounts
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.kernels.context_group import ALONE, ContextGroup
from mftcoder.training.losses.focal import Reweighed
from mftcoder.training.losses.rollouts import BatchRollouts, RolloutTask

REWARDS = ("chosen", "rejected", "right", "num_chosen", "num_rejected", "num_judged")
"""The sums of `Reweighed.rewards`, in their order: rewards of chosen and of rejected answers, pairs (or labelled answers) on the right
side, and the numbers of chosen answers, of rejected answers, and of pairs (or labelled answers)."""
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """P pairs of one task; tensors on the model's device, float64."""

    logps: Tensor  # [P, 2] summed log-probabilities
    lengths: Tensor  # [P, 2] trained tokens
    reference: Tensor  # [P, 2] summed log-probabilities of the reference; 0 without one
    desirable: Tensor  # [P] bool; true in pairs

    @property
    def gains(self) -> Tensor:
        """S - R [P, 2]."""
        return self.logps - self.reference

    @property
    def means(self) -> Tensor:
        """S / n [P, 2]."""
        return self.logps / self.lengths


def pair_losses(kind: PreferenceKind, answers: Answers, divergence: float = 0.0) -> tuple[Tensor, Tensor]:
    """Losses [P] without the token means of rpo and orpo, and rewards [P, 2]. `divergence` is KTO's z."""
    if isinstance(kind, DpoKind):
        rewards = kind.beta * answers.gains
        return _smoothed(rewards[:, 0] - rewards[:, 1], kind.label_smoothing), rewards
    if isinstance(kind, IpoKind):
        means = answers.gains / answers.lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * kind.beta)) ** 2, kind.beta * answers.gains
    if isinstance(kind, OrpoKind):
        odds = answers.means - torch.log(-torch.expm1(answers.means))
        return -kind.beta * logsigmoid(odds[:, 0] - odds[:, 1]), kind.beta * answers.means
    if isinstance(kind, SimpoKind):
        rewards = kind.beta * answers.means
        return _smoothed(rewards[:, 0] - rewards[:, 1] - kind.gamma, kind.label_smoothing), rewards
    assert isinstance(kind, KtoKind), kind.name
    gains = kind.beta * answers.gains
    away = torch.where(answers.desirable, 1.0, -1.0) * (gains[:, 0] - kind.beta * divergence)
    weights = torch.where(answers.desirable, kind.desirable_weight, kind.undesirable_weight)
    return weights * (1 - torch.sigmoid(away)), gains


def _smoothed(margins: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def nll_weight(kind: PreferenceKind) -> float:
    """The weight of the chosen answers' mean token loss."""
    return kind.rpo_alpha if isinstance(kind, DpoKind) else float(isinstance(kind, OrpoKind))


@dataclass(frozen=True)
class PairTask:
    """One preference task of a run: its kind, and what is known of each of its N samples before the first step."""

    kind: PreferenceKind
    desirable: NDArray[np.bool_]  # [N]
    reference: Float  # [N, 2]

    @classmethod
    def of(cls, kind: PreferenceKind, samples: TaskSamples, reference: Float | None) -> "PairTask":
        """`reference` is None for a kind that needs none."""
        return cls(kind, np.array(samples.desirable), np.zeros((len(samples), 2)) if reference is None else reference)


class PairLosses:
    """The pairs of a step, or of a validation: turns base coefficients into those of the pairs' losses."""

    def __init__(
        self,
        tasks: Sequence[PairTask | None],
        counts: StepCounts,
        context: ContextGroup = ALONE,
        rollouts: Sequence[RolloutTask | None] = (),
    ):
        self.tasks, self.counts, self.context, self.rollouts = tasks, counts, context, rollouts
        self.divergence = np.zeros(len(tasks))
        """KTO's z of each task [K]."""

    @property
    def with_divergence(self) -> list[int]:
        """The tasks of the step that need z."""
        present = self.counts.samples > 0
        return [k for k, task in enumerate(self.tasks) if task and isinstance(task.kind, KtoKind) and present[k]]

    def of(self, batch: PackedBatch) -> "BatchPairs | BatchRollouts | None":
        """The Focus of a micro-batch with pairs or sampled answers; None if it has neither."""
        pairs = self.pairs_of(batch)
        if not any(self.rollouts[owner] for owner in set(batch.samples[:, 0].tolist()) if self.rollouts):
            return pairs
        return BatchRollouts(self.rollouts, self.counts, batch, self.context.own, pairs)

    def pairs_of(self, batch: PackedBatch) -> "BatchPairs | None":
        """The pairs of a micro-batch; None if it has none."""
        owners = batch.samples[:, 0].tolist()
        return BatchPairs(self, batch) if any(self.tasks[owner] for owner in set(owners)) else None


class BatchPairs:
    """A Focus: from the token losses of a micro-batch with pairs to coefficients, losses and rewards."""

    def __init__(self, step: PairLosses, batch: PackedBatch):
        self.step = step
        segments = batch.real_segments.nonzero().flatten()
        self.pairs: dict[int, Tensor] = {}  # task -> [P, 3] segments of both texts, and the index of the pair
        for k in sorted(set(batch.samples[:, 0].tolist())):
            if step.tasks[k]:
                found = segments[batch.samples[:, 0] == k].reshape(-1, 2)
                index = batch.samples[batch.samples[:, 0] == k][::2, 1:]
                self.pairs[k] = torch.cat([found, index], dim=1)

    def answers(self, losses: Tensor, samples: Tensor, num_samples: int) -> dict[int, Answers]:
        """The answers of each task, from token losses [N] and the segments [N] of their tokens."""
        sums = torch.zeros(2, num_samples, dtype=torch.float64, device=losses.device)
        sums.index_add_(1, samples, torch.stack([-losses.double(), torch.ones_like(losses, dtype=torch.float64)]))
        logps, lengths = self.step.context.sum(sums)
        return {k: self._answers(k, logps, lengths) for k in self.pairs}

    def _answers(self, k: int, logps: Tensor, lengths: Tensor) -> Answers:
        task, pairs = self.step.tasks[k], self.pairs[k]
        assert task is not None
        index, segments = pairs[:, 2].numpy(), pairs[:, :2].to(logps.device)
        reference, desirable = torch.from_numpy(task.reference[index]), torch.from_numpy(task.desirable[index])
        return Answers(logps[segments], lengths[segments], reference.to(logps.device), desirable.to(logps.device))

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """Tokens of other tasks keep their coefficients. Sums over pairs are shared out over the ranks that share the rows."""
        num_tasks, device = len(self.step.tasks), losses.device
        factors = torch.ones(num_samples, dtype=torch.float64, device=device)  # of each segment's tokens
        offsets = torch.zeros(num_samples, dtype=torch.float64, device=device)
        own = torch.zeros(num_tasks, dtype=torch.float64, device=device).index_add_(0, tasks, losses.double())
        rewards = torch.zeros(len(REWARDS), num_tasks, dtype=torch.float64, device=device)
        scales = _scale_of_segment(coefficients, samples, num_samples, self.step.context)
        value = torch.zeros((), dtype=torch.float64, device=device)
        shares = self.step.context.size
        for k, answers in self.answers(losses, samples, num_samples).items():
            task, segments = self.step.tasks[k], self.pairs[k][:, :2].to(device)
            assert task is not None
            found, gained, slope = _with_slope(task.kind, answers, float(self.step.divergence[k]))
            factors[segments] = -slope
            ratio = nll_weight(task.kind) * self.step.counts.samples[k] / max(self.step.counts.tokens[k], 1)
            offsets[segments[:, 0]] = float(ratio)
            of_pairs = found - ratio * answers.logps[:, 0]
            own[k] = of_pairs.sum() / shares
            value += (scales[segments[:, 0]] * of_pairs).sum() / shares
            rewards[:, k] = _reward_sums(task.kind, gained, answers, float(self.step.divergence[k])) / shares
        pair_tasks = torch.tensor([task is not None for task in self.step.tasks], device=device)
        plain = coefficients.double() * losses.double() * ~pair_tasks[tasks]
        reweighed = coefficients.double() * (factors + offsets)[samples]
        kept = torch.where(pair_tasks[tasks], reweighed, coefficients.double()).to(coefficients.dtype)
        return Reweighed(kept, value + plain.sum(), own, rewards)


def _with_slope(kind: PreferenceKind, answers: Answers, divergence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [P], rewards [P, 2], and the gradient [P, 2] of the losses with respect to the log-probabilities."""
    with torch.enable_grad():
        logps = answers.logps.detach().requires_grad_(True)
        losses, rewards = pair_losses(
            kind, Answers(logps, answers.lengths, answers.reference, answers.desirable), divergence
        )
        (slope,) = torch.autograd.grad(losses.sum(), logps)
    return losses.detach(), rewards.detach(), slope


def _scale_of_segment(coefficients: Tensor, samples: Tensor, count: int, context: ContextGroup) -> Tensor:
    """The coefficient that all tokens of a segment share [S]; 0 for a segment without trained tokens."""
    sums = torch.zeros(2, count, dtype=torch.float64, device=coefficients.device)
    sums.index_add_(1, samples, torch.stack([coefficients.double(), torch.ones_like(coefficients).double()]))
    total, tokens = context.sum(sums)
    return total / tokens.clamp_min(1)


def _reward_sums(kind: PreferenceKind, rewards: Tensor, answers: Answers, divergence: float) -> Tensor:
    """The sums REWARDS [6] of one task."""
    if not isinstance(kind, KtoKind):
        count = rewards.new_tensor(float(len(rewards)))
        right = (rewards[:, 0] > rewards[:, 1]).double().sum()
        return torch.stack([rewards[:, 0].sum(), rewards[:, 1].sum(), right, count, count, count])
    good, reward = answers.desirable.double(), rewards[:, 0]
    right = ((reward > kind.beta * divergence) == answers.desirable).double().sum()
    bad, count = 1 - good, good.new_tensor(float(len(good)))
    return torch.stack([(good * reward).sum(), (bad * reward).sum(), right, good.sum(), bad.sum(), count])


def divergence_sums(step: PairLosses, batch: PackedBatch, losses: Tensor, samples: Tensor, num_samples: int) -> Tensor:
    """The sums [K] of S - R over the answers to other prompts in a micro-batch, for KTO."""
    sums = torch.zeros(len(step.tasks), dtype=torch.float64, device=losses.device)
    pairs = step.pairs_of(batch)
    if pairs is not None:
        for k, answers in pairs.answers(losses, samples, num_samples).items():
            sums[k] = answers.gains[:, 1].sum() / step.context.size
    return sums


def means_of(sums: Tensor, counts: StepCounts, tasks: Iterable[int]) -> Float:
    """KTO's z [K] from the sums of the whole step: means over the samples of these tasks, at least 0; 0 for other tasks."""
    found = np.zeros(len(counts.samples))
    for k in tasks:
        found[k] = max(0.0, float(sums[k]) / int(counts.samples[k]))
    return found
