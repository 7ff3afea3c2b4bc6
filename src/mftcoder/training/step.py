"""One optimizer step over its micro-batches, and one validation pass.

Goes in: the step's data with the counts of the whole step, the task weights, the model and the optimizer. Comes out: losses per
task, which are still being computed until somebody asks for them. Decides nothing: the loop does.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mftcoder.balancing.base import TaskLosses, TaskWeights
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.host_copy import HostCopy
from mftcoder.training.losses.focal import Focus, SampleFocus, TaskFocus
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.losses.router_loss import RouterTerm
from mftcoder.training.optimizer import Optimizer

MAX_PENDING = 256  # steps whose losses stay unread


@dataclass(frozen=True)
class StepResult:
    """What a step did. Its numbers are on their way from the device; whoever is the first to read one waits for them."""

    copy: HostCopy  # f64 [K + 3] or [K + 4], over all ranks: see `train_step`
    counts: StepCounts
    learning_rate: float

    @cached_property
    def _numbers(self) -> NDArray[np.float64]:
        return self.copy.read().numpy()

    @property
    def losses(self) -> TaskLosses:
        """Summed losses and counts of the whole step."""
        return TaskLosses(self._numbers[: len(self.counts.tokens)], self.counts.tokens, self.counts.samples)

    @property
    def objective(self) -> float:
        """The scalar that was minimised."""
        return float(self._numbers[len(self.counts.tokens)])

    @property
    def real_tokens(self) -> int:
        """Tokens of samples that ran through the model, trained or not; padding is not counted."""
        return int(self._numbers[len(self.counts.tokens) + 1])

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping."""
        return float(self._numbers[len(self.counts.tokens) + 2])

    @property
    def router_loss(self) -> float | None:
        """Load-balancing loss of a mixture of experts before its coefficient; None where it is no part of the objective."""
        beyond = self._numbers[len(self.counts.tokens) + 3 :]
        return float(beyond[0]) if len(beyond) else None

    @property
    def finite(self) -> bool:
        """Whether the step updated the model: all its losses and gradients were finite."""
        return bool(np.isfinite(self._numbers[: len(self.counts.tokens) + 3]).all())


class LossWindow:
    """Losses summed over the steps since somebody looked, unread until then. Steps that were not finite are left out."""

    def __init__(self, num_tasks: int):
        self._empty = TaskLosses.zeros(num_tasks)
        self._known = self._empty
        self._pending: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """Count one step in. Once there are many, the older half is read: the device has long been done with it."""
        self._pending.append(result)
        if len(self._pending) >= MAX_PENDING:
            self._read(MAX_PENDING // 2)

    def peek(self) -> TaskLosses:
        """All since the last `clear`; waits for the newest step."""
        self._read(len(self._pending))
        return self._known

    def _read(self, count: int) -> None:
        for result in self._pending[:count]:
            if result.finite:
                self._known = self._known + result.losses
        del self._pending[:count]

    def clear(self) -> None:
        """Begin anew."""
        self._known = self._empty
        self._pending.clear()

    def state_dict(self) -> dict[str, list[float]]:
        """As JSON-able lists."""
        losses = self.peek()
        return {name: getattr(losses, name).tolist() for name in ("loss_sum", "tokens", "samples")}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from `state_dict()`."""
        self._known = TaskLosses(
            np.asarray(state["loss_sum"], np.float64),
            np.asarray(state["tokens"], np.int64),
            np.asarray(state["samples"], np.int64),
        )


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
) -> StepResult:
    """Forward and backward over the micro-batches, then one update. How the step is split does not change it.

    `first` says that this process has taken no step yet: an OutOfMemoryError in the passes is then raised on all ranks, unless the
    ranks run them in lockstep; so no sum over ranks starts before the passes are over.
    """
    alone = first and not backend.lockstep  # no rank must wait for another one in a pass
    sums = torch.zeros(model.num_tasks + 2, dtype=torch.float64, device=backend.device)  # losses, objective, tokens run
    focus = _focus(model, data, weights, objective, backend)
    routers = RouterTerm(model.router, objective.router_aux_loss_coef, data, backend)
    with _memory_errors_of_all(backend) if alone else nullcontext():
        for number, batch in enumerate(data.micro_batches, start=1):
            coefficients = token_coefficients(batch, data.counts, weights, objective)
            losses = model.losses(batch, coefficients, focus, routers.weight(batch))
            if losses.trained or backend.lockstep:
                optimizer.backward(losses.objective, last=number == len(data.micro_batches) and not alone)
            sums[:-2] += losses.loss_sum
            sums[-2] += losses.value
            sums[-1] += losses.tokens
            routers.add(batch, losses.router)
    optimizer.sum_gradients()
    sums = backend.sum_over_ranks(sums)
    grad_norm = optimizer.step(learning_rate, sums[:-1])
    router_loss = routers.mean()
    parts = [sums, grad_norm.to(sums).reshape(1), *([] if router_loss is None else [router_loss])]
    return StepResult(HostCopy(torch.cat(parts)), data.counts, learning_rate)


@contextmanager
def _memory_errors_of_all(backend: Backend) -> Iterator[None]:
    """Ranks that would wait in a sum for one that ran out of memory get its error instead."""
    problem: torch.OutOfMemoryError | None = None
    try:
        yield
    except torch.OutOfMemoryError as error:
        problem = error
    if backend.any_rank(problem is not None):
        raise problem or torch.OutOfMemoryError("another rank ran out of memory")


def _focus(
    model: LanguageModel, data: StepData, weights: TaskWeights, objective: Objective, backend: Backend
) -> Focus | None:
    """The focal weighting in force. A task's probability runs over the whole step, which takes a forward pass of its own."""
    gamma, detach = objective.focal_gamma, objective.focal_detach
    if objective.focal == "sample":
        return SampleFocus(gamma, detach, model.context)
    if objective.focal == "none":
        return None
    sums = torch.zeros(3, model.num_tasks, dtype=torch.float64, device=backend.device)
    with model.evaluating():
        for batch in data.micro_batches:
            sums += model.focal_sums(batch, token_coefficients(batch, data.counts, weights, objective))
    return TaskFocus(gamma, detach, backend.sum_over_ranks(sums))


def validate(model: LanguageModel, batches: Iterable[PackedBatch], counts: StepCounts, backend: Backend) -> TaskLosses:
    """Token-weighted losses per task over all validation rows of all ranks; nothing is dropped."""
    loss_sum = torch.zeros(model.num_tasks, dtype=torch.float64, device=backend.device)
    with model.evaluating():
        for batch in batches:
            loss_sum += model.losses(batch, torch.zeros(batch.targets.shape)).loss_sum
    return TaskLosses(backend.sum_over_ranks(loss_sum).cpu().numpy(), counts.tokens, counts.samples)
