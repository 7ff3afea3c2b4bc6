"""One optimizer step over its micro-batches, what made one not finite, and one validation pass. When they are due is left to the loop."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.balancing.base import TaskLosses, TaskWeights
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import BatchLosses, LanguageModel
from mftcoder.training.losses.focal import Focus, SampleFocus, TaskFocus
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.losses.preference import REWARDS, PairLosses, PairTask, means_of
from mftcoder.training.losses.rollouts import SUMS, RolloutTask
from mftcoder.training.losses.router_loss import RouterTerm
from mftcoder.training.optimizer import Optimizer

MAX_PENDING = 256  # steps whose losses have not been read


class HostCopy:
    """A copy of a tensor from the device to the host, which starts at once; only `read` waits for it.

    Reading the tensor itself would wait for all work that the GPU was given until then, including the next steps. On the CPU
    nothing is copied.
    """

    def __init__(self, values: Tensor):
        self._values = values.detach()
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)  # so that waiting sleeps, and other threads can run
            self._arrived.record()

    def read(self) -> Tensor:
        """The values on the CPU; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


@dataclass(frozen=True)
class StepResult:
    """The results of a step. They are on their way from the device; the first access waits for them."""

    # f64 [K + 3] to [12 K + 4], over all ranks: losses, objective, tokens, gradient norm, router loss, rewards, rollouts
    copy: HostCopy
    counts: StepCounts
    learning_rate: float
    has_router: bool = False

    @cached_property
    def _numbers(self) -> NDArray[np.float64]:
        return self.copy.read().numpy()

    @property
    def _after_losses(self) -> NDArray[np.float64]:
        return self._numbers[len(self.counts.tokens) :]

    @property
    def losses(self) -> TaskLosses:
        """Summed losses and counts of the whole step."""
        return TaskLosses(self._numbers[: len(self.counts.tokens)], self.counts.units, self.counts.samples)

    @property
    def objective(self) -> float:
        """The scalar that the step minimized."""
        return float(self._after_losses[0])

    @property
    def real_tokens(self) -> int:
        """Tokens of samples that the model ran, trained or not; without padding."""
        return int(self._after_losses[1])

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping."""
        return float(self._after_losses[2])

    @property
    def router_loss(self) -> float | None:
        """Load-balancing loss of a mixture of experts, without its coefficient; None if it is not part of the objective."""
        return float(self._after_losses[3]) if self.has_router else None

    @property
    def rewards(self) -> NDArray[np.float64] | None:
        """The sums [6, K] of the step's pairs (losses/preference.py); None without pairs and sampled answers."""
        return self._sums[: len(REWARDS)] if len(self._sums) else None

    @property
    def rollouts(self) -> NDArray[np.float64] | None:
        """The sums [5, K] of the step's sampled answers (losses/rollouts.py); None without pairs and sampled answers."""
        return self._sums[len(REWARDS) :] if len(self._sums) else None

    @property
    def _sums(self) -> NDArray[np.float64]:
        return self._after_losses[4 if self.has_router else 3 :].reshape(-1, len(self.counts.tokens))

    @property
    def finite(self) -> bool:
        """True if all losses and gradients were finite, and so the step updated the model."""
        return bool(np.isfinite(self._numbers[: len(self.counts.tokens) + 3]).all())


class LossWindow:
    """Losses summed over the steps since the last `clear`; read from the device when needed. Leaves out steps that were not finite."""

    def __init__(self, num_tasks: int):
        self._empty = TaskLosses.zeros(num_tasks)
        self._known = self._empty
        self._pending: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """Add a step. When many are unread, read the older half, which the device finished long ago."""
        self._pending.append(result)
        if len(self._pending) >= MAX_PENDING:
            self._read(MAX_PENDING // 2)

    def peek(self) -> TaskLosses:
        """The sums since the last `clear`; waits for the newest step."""
        self._read(len(self._pending))
        return self._known

    def _read(self, count: int) -> None:
        for result in self._pending[:count]:
            if result.finite:
                self._known = self._known + result.losses
        del self._pending[:count]

    def clear(self) -> None:
        self._known = self._empty
        self._pending.clear()

    def state_dict(self) -> dict[str, list[float]]:
        losses = self.peek()
        return {name: getattr(losses, name).tolist() for name in ("loss_sum", "tokens", "samples")}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._known = TaskLosses(
            np.asarray(state["loss_sum"], np.float64),
            np.asarray(state["tokens"], np.int64),
            np.asarray(state["samples"], np.int64),
        )


@dataclass(frozen=True)
class Pairs:
    """The tasks of pairs and of sampled answers, for the training or the validation samples of a run; None in the place of other tasks."""

    tasks: Sequence[PairTask | None]
    rollouts: Sequence[RolloutTask | None] = ()

    def losses(
        self, model: LanguageModel, batches: Iterable[PackedBatch], counts: StepCounts, backend: Backend
    ) -> PairLosses:
        """The losses of a step or a validation over all of its `batches` on this rank. KTO needs a forward pass over them first."""
        step = PairLosses(self.tasks, counts, model.context, self.rollouts)
        if with_divergence := step.with_divergence:
            sums = torch.zeros(model.num_tasks, dtype=torch.float64, device=backend.device)
            with model.evaluating():
                for batch in batches:
                    sums += model.divergence_sums(batch, step)
            step.divergence = means_of(backend.group.sum_over_ranks(sums), counts, with_divergence)
        return step


def train_step(
    model: LanguageModel,
    data: StepData,
    weights: TaskWeights,
    objective: Objective,
    optimizer: Optimizer,
    learning_rate: float,
    backend: Backend,
    *,
    first: bool = False,
    pairs: Pairs | None = None,
) -> StepResult:
    """Forward and backward over the micro-batches, then one update. The result does not depend on how the step is split.

    `first`: this is the first step of this process. An OutOfMemoryError in its passes is then raised on all ranks (unless they run
    in lockstep), so no sum over ranks starts before the passes are over.
    """
    alone = first and not backend.lockstep  # no rank may wait for another one inside a pass
    sums = torch.zeros(model.num_tasks + 2, dtype=torch.float64, device=backend.device)
    loss_sums, objective_sum, tokens_run = sums.split([model.num_tasks, 1, 1])  # views
    focus = _focus(model, data, weights, objective, backend)
    of_pairs = pairs.losses(model, data.micro_batches, data.counts, backend) if pairs else None
    rewards = torch.zeros(len(REWARDS) + len(SUMS), model.num_tasks, dtype=torch.float64, device=backend.device)
    routers = RouterTerm(model.router, objective.router_aux_loss_coef, data, backend)
    with _memory_errors_of_all(backend) if alone else nullcontext():
        for number, batch in enumerate(data.micro_batches, start=1):
            coefficients = token_coefficients(batch, data.counts, weights, objective)
            reweigh = of_pairs.of(batch) if of_pairs else focus
            losses = model.losses(batch, coefficients, reweigh, routers.weight(batch))
            if losses.trained or backend.lockstep:
                optimizer.backward(losses.objective, last=number == len(data.micro_batches) and not alone)
            loss_sums += losses.loss_sum
            objective_sum += losses.value
            tokens_run += losses.tokens
            _add_sums(rewards, losses)
            routers.add(batch, losses.router)
    optimizer.sum_gradients()
    sums = backend.group.sum_over_ranks(sums)
    grad_norm = optimizer.step(learning_rate, sums[:-1])
    router_loss = routers.mean()
    parts = [sums, grad_norm.to(sums).reshape(1), *([] if router_loss is None else [router_loss])]
    if pairs:
        parts.append(backend.group.sum_over_ranks(rewards).flatten())
    return StepResult(HostCopy(torch.cat(parts)), data.counts, learning_rate, router_loss is not None)


def _add_sums(sums: Tensor, losses: BatchLosses) -> None:
    """Add the sums of a micro-batch's pairs and sampled answers to those of the step [11, K]."""
    if losses.rewards is not None:
        sums[: len(REWARDS)] += losses.rewards
    if losses.rollouts is not None:
        sums[len(REWARDS) :] += losses.rollouts


@contextmanager
def _memory_errors_of_all(backend: Backend) -> Iterator[None]:
    """Raise the OutOfMemoryError of one rank on all ranks, which would otherwise wait for it in a sum."""
    problem: torch.OutOfMemoryError | None = None
    try:
        yield
    except torch.OutOfMemoryError as error:
        problem = error
    if backend.group.any_rank(problem is not None):
        raise problem or torch.OutOfMemoryError("another rank ran out of memory")


def _focus(
    model: LanguageModel, data: StepData, weights: TaskWeights, objective: Objective, backend: Backend
) -> Focus | None:
    """The focal weighting of the step. A task's probability is that of the whole step, and needs a forward pass of its own."""
    gamma, detach = objective.focal_gamma, objective.focal_detach
    if objective.focal == "sample":
        return SampleFocus(gamma, detach, model.context)
    if objective.focal == "none":
        return None
    sums = torch.zeros(3, model.num_tasks, dtype=torch.float64, device=backend.device)
    with model.evaluating():
        for batch in data.micro_batches:
            sums += model.focal_sums(batch, token_coefficients(batch, data.counts, weights, objective))
    return TaskFocus(gamma, detach, backend.group.sum_over_ranks(sums))


@dataclass(frozen=True)
class Validated:
    """The results of a validation pass, over all ranks."""

    losses: TaskLosses
    rewards: NDArray[np.float64] | None  # [6, K] sums of the pairs; None without pairs and sampled answers
    rollouts: NDArray[np.float64] | None = None  # [5, K] sums of the sampled answers


def validate(
    model: LanguageModel,
    batches: Iterable[PackedBatch],
    counts: StepCounts,
    backend: Backend,
    pairs: Pairs | None = None,
) -> Validated:
    """Summed losses per task over the validation rows of all ranks. The batches are read twice if a task needs KTO's divergence."""
    loss_sum = torch.zeros(model.num_tasks, dtype=torch.float64, device=backend.device)
    sums = torch.zeros(len(REWARDS) + len(SUMS), model.num_tasks, dtype=torch.float64, device=backend.device)
    of_pairs = pairs.losses(model, batches, counts, backend) if pairs else None
    with model.evaluating():
        for batch in batches:
            found = model.losses(batch, torch.zeros(batch.targets.shape), of_pairs.of(batch) if of_pairs else None)
            loss_sum += found.loss_sum
            _add_sums(sums, found)
    losses = TaskLosses(backend.group.sum_over_ranks(loss_sum).cpu().numpy(), counts.units, counts.samples)
    if not pairs:
        return Validated(losses, None)
    whole = backend.group.sum_over_ranks(sums).cpu().numpy()
    return Validated(losses, whole[: len(REWARDS)], whole[len(REWARDS) :])


def describe_nonfinite(
    model: LanguageModel,
    result: StepResult,
    data: StepData,
    names: Sequence[str],
    origin: Callable[[int, int], str],
    backend: Backend,
) -> str:
    """For a message: `the loss of task 'tests' is nan, first in data/tests/a.jsonl:17`, or that only the gradient is not finite.

    The model is as it was before the step, because a step that is not finite updates nothing.
    """
    means = dict(zip(names, result.losses.mean.tolist(), strict=True))
    counted = dict(zip(names, result.counts.tokens.tolist(), strict=True))
    bad = [name for name in names if counted[name] and not math.isfinite(means[name])]
    if not bad:
        return f"the gradient norm is {result.grad_norm}, with finite losses"
    on_ranks = backend.group.all_gather(_first_bad_sample(model, data, names.index(bad[0])))
    found = next((sample for sample in on_ranks if sample), None)
    where = f"first in {origin(*found)}" if found else "although the loss of each of its samples is finite"
    others = f" (and of {', '.join(bad[1:])})" if bad[1:] else ""
    return f"the loss of task '{bad[0]}'{others} is {means[bad[0]]}, {where}"


def _first_bad_sample(model: LanguageModel, data: StepData, task: int) -> tuple[int, int] | None:
    """`(task, index)` of the first sample of the task whose loss is not finite, among this rank's micro-batches."""
    bad = []
    with model.evaluating():
        for batch in data.micro_batches:  # no early exit: all ranks must run the same number of forward passes
            finite = torch.isfinite(model.sample_losses(batch)).cpu()[batch.real_segments]
            pairs = zip(batch.samples.tolist(), finite.tolist(), strict=True)
            bad += [(of_task, index) for (of_task, index), good in pairs if of_task == task and not good]
    return bad[0] if bad else None
