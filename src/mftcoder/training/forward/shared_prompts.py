"""Run the common prompt of a pair once: the second text goes on after the first one's prompt, and does not see its answer.

    in the batch    p1 p2 p3 a1 a2 | p1 p2 p3 b1 | padding
    what runs       p1 p2 p3 a1 a2 | b1              b1 has the position 3, and sees p1 p2 p3 b1

The last token of a prompt predicts the first one of an answer, so it stays in both texts. Padding does not run either. The data, the plan
of the rows and all counts stay those of the whole batch. The attention must know about it: `segments` does (kernels/attention.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mftcoder.data.batches.loader import PackedBatch
from mftcoder.data.batches.packing import assemble
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.kernels.attention import SampleLayout

UNTRAINED = -100


@dataclass(frozen=True)
class CompactRow:
    """The N positions of a batch that run, as one row; tensors on the host."""

    kept: Tensor  # [N] their places in the flat rows [B * L]
    places: Tensor  # [B * L] the place of each position in the compact row; meaningless where it does not run
    layout: SampleLayout

    @classmethod
    def of(cls, batch: PackedBatch) -> "CompactRow | None":
        """None if no two segments share a prompt."""
        starts = (batch.position_ids.flatten() == 0).nonzero().flatten().tolist()
        ids, targets, tasks = (x.flatten() for x in (batch.input_ids, batch.targets, batch.task_ids))
        bounds = zip(starts, [*starts[1:], ids.numel()], strict=True)
        segments = [(start, end) for start, end in bounds if tasks[start] >= 0]
        owners = batch.samples.tolist()
        shared = [0] * len(segments)
        for at in range(1, len(segments)):
            if owners[at] == owners[at - 1] and not shared[at - 1]:
                shared[at] = _common_prompt(ids, targets, segments[at - 1], segments[at])
        if not any(shared):
            return None
        parts = [torch.arange(start + skipped, end) for (start, end), skipped in zip(segments, shared, strict=True)]
        kept = torch.cat(parts)
        places = torch.zeros(ids.numel(), dtype=torch.long)
        places[kept] = torch.arange(len(kept))
        return cls(kept, places, SampleLayout((tuple(map(len, parts)),), tuple(shared)))


def _common_prompt(ids: Tensor, targets: Tensor, first: tuple[int, int], second: tuple[int, int]) -> int:
    """How many positions the second text has in common with the first one before its first trained target."""
    trained = (targets[slice(*second)] != UNTRAINED).nonzero().flatten()
    most = min(first[1] - first[0], second[1] - second[0] - 1, int(trained[0]) if len(trained) else 0)
    differ = (ids[first[0] : first[0] + most] != ids[second[0] : second[0] + most]).nonzero().flatten()
    return int(differ[0]) if len(differ) else most


def probe_pair(samples: TaskSamples) -> PackedBatch:
    """A batch of the task's first pair and some padding."""
    sample = samples.sample(0)
    row = assemble([sample], len(sample.input_ids) + 3)
    columns = (row.input_ids, row.targets, row.position_ids, row.task_ids)
    ids, targets, positions, tasks = (torch.from_numpy(column).long()[None] for column in columns)
    return PackedBatch(ids, targets, positions, tasks, torch.tensor([[sample.task, 0]] * 2))


def share_prompts(model: Any, batch: PackedBatch, rounding: float, say: Callable[[str], None]) -> None:
    """Let the model run common prompts once, if its attention can and the pair of `batch` has the same result; else say why not."""
    problem = model.sharing_problem()
    if problem is None:
        with model.evaluating():
            apart, together = (model.run_forward(lambda on=on: _hidden(model, batch, on)) for on in (False, True))
        distance = float((together - apart).float().norm() / apart.float().norm().clamp_min(1e-6))
        problem = None if distance <= rounding else f"the results of a pair differ by {distance:.2g} of their size"
    model.shares_prompts = problem is None
    if problem:
        say(f"each text of a pair runs its own prompt: {problem}")


def _hidden(model: Any, batch: PackedBatch, shared: bool) -> Tensor:
    model.shares_prompts = shared
    hidden: Tensor = model.trained_hidden(batch)
    return hidden
