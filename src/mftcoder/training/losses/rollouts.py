"""The loss over sampled answers with rewards (GRPO), as coefficients a token: signed, so that the weighted cross entropy carries them.

With the group's mean reward m and standard deviation s, A = (R - m) / s (scale_rewards: false: R - m), S_t the log-probability of a
token of the answer, O_t that of the model that sampled it, F_t that of the untrained model, r_t = exp(S_t - O_t), N the answers of the
task in the step, n the tokens of the answer:

    loss = 1/N sum_answers sum_t u (-min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon_high) A) + beta k_t)
    k_t  = exp(F_t - S_t) - (F_t - S_t) - 1                      (an estimate of the divergence that is never negative)
    u    = 1/n (answer), N / all tokens of the step (tokens), 1 / max_tokens (constant)

The gradient with respect to S_t is -r_t A u / N, or 0 where the clip acts, plus beta u / N (1 - exp(F_t - S_t)). Its negative is the
coefficient of the token. It needs the micro-batch alone, because N and the tokens of the step are known from the plan. With epsilon:
null r_t is 1 and the coefficient A u / N is known before the first forward pass.

What balancers and validation see instead is an estimate of 1 - R under the current model, which falls as the model learns:
1 - R - 1/n sum_t (min(r_t C, clip(r_t) C) - C), C = R - m. For answers that the current model sampled it is 1 - R.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.config.kinds import GrpoKind
from mftcoder.data.batches.loader import PackedBatch, StepCounts
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.training.losses.focal import Focus, Reweighed

Float = NDArray[np.float64]
SUMS = ("reward", "clipped", "divergence", "num_answers", "num_tokens")
"""The sums of a task of sampled answers, in their order: rewards of answers, clipped tokens, divergences of tokens, and both numbers."""


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities of all trained tokens of a task's samples [T], sample by sample, as they were before the first step."""

    sampled: Float | None  # O: under the model that the run began this data with
    untrained: Float | None  # F: with the LoRA weights off


@dataclass(frozen=True)
class RolloutTask:
    """One task of sampled answers: its kind, and what is known of each of its N samples before the first step."""

    kind: GrpoKind
    rewards: Float  # [3, N] reward, mean of the group, standard deviation of the group
    lengths: NDArray[np.int64]  # [N] trained tokens
    logps: TokenLogps

    @classmethod
    def of(cls, kind: GrpoKind, samples: TaskSamples, logps: TokenLogps) -> "RolloutTask":
        return cls(kind, samples.rewards, np.array(samples.trained_tokens, np.int64), logps)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where the tokens of each sample begin in `logps` [N]."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def advantages(self) -> Float:
        """A [N]."""
        reward, mean, deviation = self.rewards
        return (reward - mean) / deviation if self.kind.scale_rewards else reward - mean


@dataclass(frozen=True)
class Tokens:
    """T tokens of one task; tensors on the model's device, float64."""

    logps: Tensor  # S [T]
    sampled: Tensor | None  # O [T]
    untrained: Tensor | None  # F [T]
    advantages: Tensor  # A of their answer [T]
    centered: Tensor  # R - m of their answer [T]

    @property
    def ratios(self) -> Tensor:
        """r [T]."""
        return torch.ones_like(self.logps) if self.sampled is None else torch.exp(self.logps - self.sampled)


@dataclass(frozen=True)
class TokenTerms:
    """What the formula gives for T tokens, before u / N."""

    losses: Tensor  # [T]
    coefficients: Tensor  # [T] the negative gradient with respect to S
    gains: Tensor  # [T] the clipped ratio times R - m, minus R - m
    clipped: Tensor  # [T] 1 where the clip acts
    divergences: Tensor  # k [T]


def token_terms(kind: GrpoKind, tokens: Tokens) -> TokenTerms:
    """The formula above, token by token."""
    ratios, advantages = tokens.ratios, tokens.advantages
    surrogate, clipped = _clipped(kind, ratios, advantages)
    gains, _ = _clipped(kind, ratios, tokens.centered)
    coefficients = torch.where(clipped, 0.0, ratios * advantages)
    divergences = torch.zeros_like(ratios)
    if tokens.untrained is not None:
        away = tokens.untrained - tokens.logps
        divergences = torch.expm1(away) - away
        coefficients = coefficients + kind.beta * torch.expm1(away)
    losses = -surrogate + kind.beta * divergences
    return TokenTerms(losses, coefficients, gains - tokens.centered, clipped.double(), divergences)


def _clipped(kind: GrpoKind, ratios: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A), and where the clip acts."""
    if kind.epsilon is None:
        return ratios * advantages, torch.zeros_like(ratios, dtype=torch.bool)
    high = kind.epsilon if kind.epsilon_high is None else kind.epsilon_high
    free, bounded = ratios * advantages, ratios.clamp(1 - kind.epsilon, 1 + high) * advantages
    return torch.minimum(free, bounded), bounded < free


class BatchRollouts:
    """A Focus: from the token losses of a micro-batch with sampled answers to coefficients, losses and rewards.

    Tokens of other tasks keep what `inner` (that of the pairs of the micro-batch, if any) makes of them. All sums are over tokens, so
    ranks that share rows add up theirs.
    """

    def __init__(
        self,
        tasks: Sequence[RolloutTask | None],
        counts: StepCounts,
        batch: PackedBatch,
        own: Callable[[Tensor], Tensor],
        inner: Focus | None,
    ):
        """`own` takes this rank's slice of [B, L]."""
        self.tasks, self.counts, self.inner = tasks, counts, inner
        trained = (batch.targets != -100).flatten()
        segment = ((batch.position_ids == 0).flatten().cumsum(0) - 1)[trained]
        owners = own(batch.task_ids).flatten()[own(batch.targets != -100).flatten()]
        self.positions = {k: (owners == k).nonzero().flatten() for k, task in enumerate(tasks) if task is not None}
        of_segment = torch.full((len(batch.real_segments),), -1)
        of_segment[batch.real_segments] = batch.samples[:, 1]
        before = torch.searchsorted(segment, segment)  # segments ascend: the first token of the same segment
        self.samples = self._spread(
            of_segment[segment], trained, batch, own
        )  # [N] index of each token's sample in its task
        self.places = self._spread(
            torch.arange(len(segment)) - before, trained, batch, own
        )  # [N] of each token in its sample

    def _spread(self, values: Tensor, trained: Tensor, batch: PackedBatch, own: Callable[[Tensor], Tensor]) -> Tensor:
        """Values of all trained tokens -> of those in this rank's slice."""
        whole = torch.zeros(batch.targets.numel(), dtype=torch.int64)
        whole[trained] = values
        return own(whole.view_as(batch.targets)).flatten()[own(batch.targets != -100).flatten()]

    def __call__(
        self, losses: Tensor, coefficients: Tensor, samples: Tensor, tasks: Tensor, num_samples: int
    ) -> Reweighed:
        """All tensors are [N]."""
        num_tasks = len(self.tasks)
        found = self._inner(losses, coefficients, samples, tasks, num_samples)
        kept, value = found.coefficients.double(), found.value.double()
        assert found.loss_sum is not None
        own = found.loss_sum.clone()
        sums = torch.zeros(len(SUMS), num_tasks, dtype=torch.float64, device=losses.device)
        for k, positions in self.positions.items():  # known on the host, so that nothing waits for a GPU
            if not len(positions):
                continue
            mine = positions.to(losses.device)
            base, index = coefficients[mine].double(), self.samples[positions].numpy()
            terms, shares, rewards = self._terms(k, losses[mine], index, self.places[positions].numpy())
            scale = base * self._scale(k, shares)
            kept[mine] = scale * terms.coefficients
            value = value - (base * losses[mine].double()).sum() + (scale * terms.losses).sum()
            own[k] = (shares * (1 - rewards - terms.gains)).sum()
            parts = (shares * rewards, terms.clipped, terms.divergences, shares, torch.ones_like(shares))
            sums[:, k] = torch.stack([part.sum() for part in parts])
        return Reweighed(kept.to(coefficients.dtype), value, own, found.rewards, sums)

    def _inner(self, losses: Tensor, coefficients: Tensor, *where: Tensor | int) -> Reweighed:
        if self.inner is not None:
            return self.inner(losses, coefficients, *where)  # type: ignore[arg-type]
        own = torch.zeros(len(self.tasks), dtype=torch.float64, device=losses.device)
        own.index_add_(0, where[1], losses.double())  # type: ignore[arg-type]
        return Reweighed(coefficients, (coefficients.double() * losses.double()).sum(), own)

    def _terms(
        self, k: int, losses: Tensor, index: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[TokenTerms, Tensor, Tensor]:
        """The formula for a task's tokens, 1 / n of their answers, and the rewards of their answers."""
        task = self.tasks[k]
        assert task is not None

        def values(found: Float | None) -> Tensor | None:
            return None if found is None else torch.from_numpy(found).to(losses.device)

        at = task.starts[index] + places
        sampled, untrained = (None if one is None else one[at] for one in (task.logps.sampled, task.logps.untrained))
        reward, mean, _ = task.rewards[:, index]
        advantages, centered = values(task.advantages[index]), values(reward - mean)
        shares, rewards = values(1 / task.lengths[index]), values(reward)
        assert advantages is not None and centered is not None and shares is not None and rewards is not None
        tokens = Tokens(-losses.double(), values(sampled), values(untrained), advantages, centered)
        return token_terms(task.kind, tokens), shares, rewards

    def _scale(self, k: int, shares: Tensor) -> Tensor:
        """u, for base coefficients that hold 1 / N."""
        task = self.tasks[k]
        assert task is not None
        if task.kind.length == "answer":
            return shares
        counts = self.counts
        per_token = (
            1 / task.kind.max_tokens
            if task.kind.length == "constant"
            else float(counts.samples[k] / max(counts.tokens[k], 1))
        )
        return torch.full_like(shares, per_token)
