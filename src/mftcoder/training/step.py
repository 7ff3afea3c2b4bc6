"""One optimiser step over its micro-batches, and one validation pass.

Goes in: the step's data with the counts of the whole step, the task weights, the model and the optimiser. Comes out: losses per
task, as tensors that are still being computed until somebody asks for numbers. Decides nothing: the loop does.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mftcoder.balancing.base import TaskLosses, TaskWeights
from mftcoder.data.loader import PackedBatch, StepCounts, StepData
from mftcoder.training.backend import Backend
from mftcoder.training.focal import Focus, SampleFocus, TaskFocus
from mftcoder.training.language_model import LanguageModel
from mftcoder.training.objective import Objective, token_coefficients
from mftcoder.training.optimizer import Optimizer
from mftcoder.training.router_loss import RouterTerm

MAX_PENDING = 256  # steps whose losses stay on the device


@dataclass(frozen=True)
class StepResult:
    """What a step did. `losses` and `grad_norm` wait for the device when they are first read."""

    sums: Tensor  # f64 [K + 2], over all ranks: loss sums of the tasks, the objective, tokens run through the model
    counts: StepCounts
    grad_norm_tensor: Tensor
    learning_rate: float
    router_loss_tensor: Tensor | None = None  # load-balancing loss of the routers, mean over the step's tokens

    @property
    def router_loss(self) -> float | None:
        """Load-balancing loss of a mixture of experts before its coefficient; None where it is no part of the objective."""
        return None if self.router_loss_tensor is None else float(self.router_loss_tensor)

    @property
    def losses(self) -> TaskLosses:
        """Summed losses and counts of the whole step."""
        return TaskLosses(self.sums[:-2].cpu().numpy(), self.counts.tokens, self.counts.samples)

    @property
    def objective(self) -> float:
        """The scalar that was minimised."""
        return float(self.sums[-2])

    @property
    def real_tokens(self) -> int:
        """Tokens of samples that ran through the model, trained or not; padding is not counted."""
        return int(self.sums[-1])

    @property
    def finite(self) -> bool:
        """Whether the step updated the model: all its losses and gradients were finite."""
        return bool(torch.isfinite(self.sums).all()) and math.isfinite(self.grad_norm)

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping."""
        return float(self.grad_norm_tensor)


class LossWindow:
    """Losses summed over the steps since somebody looked, on the device until then. Steps that were not finite are left out."""

    def __init__(self, num_tasks: int):
        self._empty = TaskLosses.zeros(num_tasks)
        self._known = self._empty
        self._pending: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """Count one step in; waits for the device once in many steps only."""
        self._pending.append(result)
        if len(self._pending) >= MAX_PENDING:
            self.peek()

    def peek(self) -> TaskLosses:
        """All since the last `clear`."""
        for result in self._pending:
            if result.finite:
                self._known = self._known + result.losses
        self._pending.clear()
        return self._known

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
) -> StepResult:
    """Forward and backward over the micro-batches, then one update. How the step is split does not change it."""
    sums = torch.zeros(model.num_tasks + 2, dtype=torch.float64, device=backend.device)
    focus = _focus(model, data, weights, objective, backend)
    routers = RouterTerm(model.router, objective.router_aux_loss_coef, data, backend)
    for batch in data.micro_batches:
        coefficients = token_coefficients(batch, data.counts, weights, objective)
        losses = model.losses(batch, coefficients, focus, routers.weight(batch))
        if losses.trained or backend.lockstep:
            backend.backward(losses.objective)
        sums[:-2] += losses.loss_sum
        sums[-2] += losses.value
        sums[-1] += losses.tokens
        routers.add(batch, losses.router)
    sums = backend.sum_over_ranks(sums)
    grad_norm = optimizer.step(learning_rate, sums[:-1])
    return StepResult(
        sums=sums,
        counts=data.counts,
        grad_norm_tensor=grad_norm,
        learning_rate=learning_rate,
        router_loss_tensor=routers.mean(),
    )


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
