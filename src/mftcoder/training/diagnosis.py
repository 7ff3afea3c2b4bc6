"""What is wrong with a step whose losses or gradients are not finite: which task, which sample first.

Goes in: the step's data and result, and the model as it was (a step that is not finite updates nothing). Comes out: half a
sentence for a message. Costs forward passes, and runs only when something is wrong already.
"""

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
    """`the loss of task 'tests' is nan, first in data/tests/a.jsonl:17`, or that the gradient alone is not finite."""
    means = dict(zip(names, result.losses.mean.tolist(), strict=True))
    counted = dict(zip(names, result.counts.tokens.tolist(), strict=True))
    bad = [name for name in names if counted[name] and not math.isfinite(means[name])]
    if not bad:
        return f"the gradient's norm is {result.grad_norm}, with finite losses"
    on_ranks = backend.share(_first_bad_sample(model, data, names.index(bad[0])))
    found = next((sample for sample in on_ranks if sample), None)
    where = f"first in {origin(*found)}" if found else "though each of its samples is finite by itself"
    others = f" (and of {', '.join(bad[1:])})" if bad[1:] else ""
    return f"the loss of task '{bad[0]}'{others} is {means[bad[0]]}, {where}"


def _first_bad_sample(model: LanguageModel, data: StepData, task: int) -> tuple[int, int] | None:
    """`(task, index)` of the first sample of the task whose loss is not finite, in this rank's share of the step."""
    bad = []
    with model.evaluating():
        for batch in data.micro_batches:  # to the end: all ranks run the same number of forward passes
            finite = torch.isfinite(model.sample_losses(batch)).cpu()[_real_segments(batch)]
            pairs = zip(batch.samples.tolist(), finite.tolist(), strict=True)
            bad += [(of_task, index) for (of_task, index), good in pairs if of_task == task and not good]
    return bad[0] if bad else None


def _real_segments(batch: PackedBatch) -> torch.Tensor:
    """Which segments are samples rather than padding, in order of appearance."""
    starts = (batch.position_ids == 0).flatten()
    return (batch.task_ids.flatten() >= 0)[starts]
