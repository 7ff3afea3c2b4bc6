"""One optimiser step over its micro-batches, and one validation pass.

Goes in: the step's data with the counts of the whole step, the task weights, the model and the optimiser. Comes out: losses per
task, as tensors that are still being computed until somebody asks for numbers. Decides nothing: the loop does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mftcoder.balancing.base import TaskLosses, TaskWeights
from mftcoder.data.loader import PackedBatch, StepCounts, StepData
from mftcoder.training.backend import Backend
from mftcoder.training.language_model import LanguageModel
from mftcoder.training.objective import token_coefficients
from mftcoder.training.optimizer import MasterAdamW


@dataclass(frozen=True)
class StepResult:
    """What a step did. `losses` and `grad_norm` wait for the device when they are first read."""

    sums: Tensor  # f64 [K + 2], over all ranks: loss sums of the tasks, the objective, tokens run through the model
    counts: StepCounts
    grad_norm_tensor: Tensor
    learning_rate: float

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
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping."""
        return float(self.grad_norm_tensor)


class LossWindow:
    """Losses summed over the steps since somebody looked, on the device until then."""

    def __init__(self, num_tasks: int):
        self._empty = TaskLosses.zeros(num_tasks)
        self._known, self._pending = self._empty, torch.zeros(0)

    def add(self, result: StepResult) -> None:
        """Count one step in; does not wait for the device."""
        losses = result.sums[:-2]
        self._pending = losses.clone() if self._pending.numel() == 0 else self._pending + losses
        seen = TaskLosses(self._empty.loss_sum, result.counts.tokens, result.counts.samples)
        self._known = self._known + seen

    def peek(self) -> TaskLosses:
        """All since the last `clear`."""
        if self._pending.numel():
            self._known = TaskLosses(
                self._known.loss_sum + self._pending.cpu().numpy(), self._known.tokens, self._known.samples
            )
            self._pending = torch.zeros(0)
        return self._known

    def clear(self) -> None:
        """Begin anew."""
        self._known, self._pending = self._empty, torch.zeros(0)

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
    normalization: str,
    optimizer: MasterAdamW,
    learning_rate: float,
    backend: Backend,
) -> StepResult:
    """Forward and backward over the micro-batches, then one update. How the step is split does not change it."""
    sums = torch.zeros(model.num_tasks + 2, dtype=torch.float64, device=backend.device)
    for batch in data.micro_batches:
        coefficients = token_coefficients(batch, data.counts, weights, normalization)
        losses = model.losses(batch, coefficients)
        if losses.trained:
            backend.backward(losses.objective)
            sums[:-2] += losses.loss_sum
            sums[-2] += losses.objective.detach()
        sums[-1] += int((batch.task_ids >= 0).sum())
    grad_norm = optimizer.step(learning_rate)
    return StepResult(
        sums=backend.sum_over_ranks(sums),
        counts=data.counts,
        grad_norm_tensor=grad_norm,
        learning_rate=learning_rate,
    )


def validate(model: LanguageModel, batches: Iterable[PackedBatch], counts: StepCounts, backend: Backend) -> TaskLosses:
    """Token-weighted losses per task over all validation rows of all ranks; nothing is dropped."""
    loss_sum = torch.zeros(model.num_tasks, dtype=torch.float64, device=backend.device)
    with model.evaluating():
        for batch in batches:
            loss_sum += model.losses(batch, torch.zeros(batch.targets.shape)).loss_sum
    return TaskLosses(backend.sum_over_ranks(loss_sum).cpu().numpy(), counts.tokens, counts.samples)
