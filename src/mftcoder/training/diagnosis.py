"""Find the task and the first sample that made a step's losses or gradients not finite. Runs forward passes, on failure only."""

import math
from collections.abc import Callable, Sequence

import torch

from mftcoder.data.batches.loader import PackedBatch, StepData
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.step import StepResult


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
            finite = torch.isfinite(model.sample_losses(batch)).cpu()[_real_segments(batch)]
            pairs = zip(batch.samples.tolist(), finite.tolist(), strict=True)
            bad += [(of_task, index) for (of_task, index), good in pairs if of_task == task and not good]
    return bad[0] if bad else None


def _real_segments(batch: PackedBatch) -> torch.Tensor:
    """For each segment in order: True for a sample, False for padding."""
    starts = (batch.position_ids == 0).flatten()
    return (batch.task_ids.flatten() >= 0)[starts]
