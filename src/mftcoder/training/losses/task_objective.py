"""The objective for other training loops in PyTorch: from token losses and their tasks to a scalar for `backward`.

objective.py has the formulas. `mft train` knows a step's counts before its first forward pass; here they come from the step's targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.balancing.standalone import task_names, task_weights
from mftcoder.data.batches.loader import StepCounts
from mftcoder.errors import ConfigError
from mftcoder.registry import did_you_mean
from mftcoder.training.losses.objective import NORMALIZATIONS, Objective, task_scales

UNTRAINED = -100


@dataclass(frozen=True)
class _Samples:
    """The samples of some rows: the sample of each position, and the task and trained tokens of each sample."""

    of_position: Tensor  # [B, L]
    tasks: Tensor  # [S]
    trained: Tensor  # [S]


class TaskObjective:
    """The objective of a step over several tasks: `token`, `sample`, `task_token` (the default) or `task_sample`.

        objective = TaskObjective(["tests", "docs"])
        loss = objective(token_losses, targets, task_ids)

    For a step of several micro-batches count all of them first, so that the result does not depend on the split:

        counts = objective.count(*((batch.targets, batch.task_ids) for batch in step))
        for batch in step:
            objective(token_losses(batch), batch.targets, batch.task_ids, counts=counts).backward()

    `targets` [B, L] are already shifted, and -100 for tokens that are not trained. `task_ids` [B] or [B, L] are indices in `tasks`.
    A row is one sample; if it holds several, `position_ids` [B, L] start at 0 with each sample.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        normalization: str = "task_token",
        absent_task: str = "renormalize",
        weights: Mapping[str, float] | None = None,
    ):
        if normalization not in NORMALIZATIONS:
            raise ConfigError(
                f"normalization: unknown value '{normalization}'.{did_you_mean(normalization, NORMALIZATIONS)}"
            )
        if absent_task not in ("renormalize", "keep"):
            raise ConfigError(f"absent_task: '{absent_task}' is neither renormalize nor keep")
        self.tasks = task_names(tasks)
        self._objective = Objective(normalization, absent_task)
        self._weights = TaskWeights(np.ones(len(self.tasks)))
        if weights is not None:
            self.weights = weights

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each task; a balancer's `observe` returns new ones."""
        return dict(zip(self.tasks, self._weights.values.tolist(), strict=True))

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        self._weights = task_weights(weights, self.tasks)

    def count(self, *micro_batches: tuple[Tensor, ...]) -> StepCounts:
        """Trained tokens and samples of a whole step; a micro-batch is `(targets, task_ids)` or `(targets, task_ids, position_ids)`.

        With several processes each counts its own; sum their `tokens` and `samples` with `all_reduce`.
        """
        tokens, samples = np.zeros(len(self.tasks), np.int64), np.zeros(len(self.tasks), np.int64)
        positions = 0
        for targets, task_ids, *position_ids in micro_batches:
            found = self._samples(targets, task_ids, *position_ids)
            trained = found.trained > 0
            tasks = found.tasks[trained]
            samples += torch.bincount(tasks, minlength=len(self.tasks)).cpu().numpy()
            counted = torch.zeros(len(self.tasks), dtype=torch.int64, device=tasks.device)
            tokens += counted.index_add_(0, tasks, found.trained[trained]).cpu().numpy()
            positions += targets.numel()
        return StepCounts(tokens, samples, positions)

    def __call__(
        self,
        token_losses: Tensor,
        targets: Tensor,
        task_ids: Tensor,
        *,
        counts: StepCounts | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """This micro-batch's part of the objective, a scalar; token_losses [B, L]. Without `counts` the micro-batch is the whole step."""
        rows = (targets, task_ids) if position_ids is None else (targets, task_ids, position_ids)
        _check_losses(token_losses, targets)
        if counts is not None and len(getattr(counts, "tokens", ())) != len(self.tasks):
            raise ConfigError("counts: must be what `count` of an objective over the same tasks returned")
        counts = self.count(rows) if counts is None else counts
        scale = torch.from_numpy(task_scales(counts, self._weights, self._objective)).to(token_losses.device)
        found = self._samples(*rows)
        of_sample = scale[found.tasks.clamp(min=0)]
        if self._objective.normalization in ("sample", "task_sample"):
            of_sample = of_sample / found.trained.clamp(min=1)
        trained = targets != UNTRAINED
        coefficients = torch.where(trained, of_sample[found.of_position], 0.0).float()
        return (token_losses.float().masked_fill(~trained, 0.0) * coefficients).sum()  # 0 * nan would be nan

    def mean_losses(self, token_losses: Tensor, targets: Tensor, task_ids: Tensor) -> dict[str, float]:
        """The mean token loss of each task that is present, for a balancer or a log."""
        _check_losses(token_losses, targets)
        _check_rows(targets, task_ids)
        trained = targets != UNTRAINED
        tasks = _by_position(task_ids, targets)[trained]
        self._check_known(tasks)
        sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=tasks.device)
        sums.index_add_(0, tasks, token_losses.detach()[trained].double())
        tokens = torch.bincount(tasks, minlength=len(self.tasks))
        means = (sums / tokens).tolist()
        return {task: mean for task, mean, count in zip(self.tasks, means, tokens.tolist(), strict=True) if count}

    def _samples(self, targets: Tensor, task_ids: Tensor, position_ids: Tensor | None = None) -> _Samples:
        _check_rows(targets, task_ids, position_ids)
        starts = torch.zeros_like(targets, dtype=torch.bool) if position_ids is None else position_ids == 0
        starts[:, :1] = True  # a row that goes on with the sample of the row before does not exist
        of_position = starts.flatten().cumsum(0).view_as(targets) - 1
        by_position, is_trained = _by_position(task_ids, targets), targets != UNTRAINED
        tasks, samples = by_position[starts], of_position[is_trained]
        self._check_known(by_position[is_trained])
        if (tasks[samples] != by_position[is_trained]).any():
            raise ConfigError(
                "task_ids: differ inside a sample. A row is one sample unless position_ids say where its samples begin"
            )
        return _Samples(of_position, tasks, torch.bincount(samples, minlength=len(tasks)))

    def _check_known(self, tasks: Tensor) -> None:
        unknown = tasks[(tasks < 0) | (tasks >= len(self.tasks))]
        if len(unknown):
            raise ConfigError(f"task_ids: hold {int(unknown[0])}; the tasks are 0 to {len(self.tasks) - 1}")


def _check_losses(token_losses: Any, targets: Any) -> None:
    if not isinstance(token_losses, Tensor) or token_losses.shape != getattr(targets, "shape", None):
        raise ConfigError(
            f"token_losses: must be a tensor of one loss a target, not {_kind(token_losses)}; targets: {_kind(targets)}"
        )


def _check_rows(targets: Any, task_ids: Any, position_ids: Any = None) -> None:
    """ConfigError unless shapes and dtypes are those that TaskObjective promises: a shape that broadcasts would be a wrong loss."""
    if not _is_whole(targets) or targets.dim() != 2:
        raise ConfigError(
            f"targets: must be a tensor [rows, positions] of token ids, {UNTRAINED} where nothing is trained, not {_kind(targets)}"
        )
    if not _is_whole(task_ids) or task_ids.shape not in (targets.shape, targets.shape[:1], (len(targets), 1)):
        raise ConfigError(
            f"task_ids: must be a tensor of whole numbers, [rows] or [rows, positions], not {_kind(task_ids)}; targets: {_kind(targets)}"
        )
    if position_ids is not None and (not _is_whole(position_ids) or position_ids.shape != targets.shape):
        raise ConfigError(
            f"position_ids: must be a tensor of whole numbers [rows, positions], not {_kind(position_ids)}; targets: {_kind(targets)}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _by_position(task_ids: Tensor, targets: Tensor) -> Tensor:
    """Task of each position [B, L]."""
    return (task_ids if task_ids.dim() == 2 else task_ids[:, None]).to(targets.device).expand_as(targets)
