"""The mixture: a seeded, endless stream of (task, row) that can be read at any position. Pure arithmetic.

The stream has no state but the position, so nothing is replayed after a restart. `StepPlan` assigns its rows to steps, ranks and
micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["proportional", "uniform", "temperature", "weights"]
Integers = NDArray[np.int64]


def task_fractions(
    row_counts: Sequence[int], sampling: Sampling, temperature: float, weights: Sequence[float]
) -> tuple[Fraction, ...]:
    """Each task's exact fraction of the stream [K], sum 1; 0 for a task without rows."""
    raw = {
        "proportional": lambda: [Fraction(count) for count in row_counts],
        "uniform": lambda: [Fraction(1) for _ in row_counts],
        "temperature": lambda: [Fraction(float(count) ** (1 / temperature)) for count in row_counts],
        "weights": lambda: [Fraction(weight) for weight in weights],
    }[sampling]()
    present = [value if count else Fraction(0) for value, count in zip(raw, row_counts, strict=True)]
    total = sum(present)
    if not total:
        raise ValueError("no task has rows and a sampling weight above 0")
    return tuple(value / total for value in present)


class Mixture:
    """A stream of cycles. Within a cycle, the rows of each task are spread evenly, with random offsets.

    With proportional sampling, a cycle is an epoch: every row exactly once, in a new order each time. Otherwise each task has
    shuffled epochs of its own, and after any number of cycles its count is within one row of its exact fraction.
    """

    def __init__(
        self,
        row_counts: Sequence[int],
        *,
        sampling: Sampling = "proportional",
        temperature: float = 2.0,
        weights: Sequence[float] = (),
        seed: int = 0,
    ):
        self.row_counts = tuple(row_counts)
        self.seed = seed
        self.fractions = task_fractions(row_counts, sampling, temperature, weights)
        self.epoch_rows = sum(self.row_counts)
        """Rows of a pass over the data: the sum over tasks, in every sampling mode."""
        # At least four rows of the rarest task per cycle, so that its cumulative count never decreases.
        rarest = min(fraction for fraction in self.fractions if fraction)
        self.cycle_rows = self.epoch_rows if sampling == "proportional" else max(self.epoch_rows, -int(-4 // rarest))
        self._cycle = lru_cache(maxsize=2)(self._make_cycle)
        self._order = lru_cache(maxsize=2 * len(self.row_counts))(self._make_order)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_cycle", "_order")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._cycle = lru_cache(maxsize=2)(self._make_cycle)
        self._order = lru_cache(maxsize=2 * len(self.row_counts))(self._make_order)

    def take(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Tasks and rows [stop - start] at positions start..stop of the stream."""
        tasks, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            cycle, offset = divmod(start, self.cycle_rows)
            end = min(stop - start + offset, self.cycle_rows)
            cycle_tasks, cycle_rows = self._cycle(cycle)
            tasks.append(cycle_tasks[offset:end])
            rows.append(cycle_rows[offset:end])
            start += end - offset
        return np.concatenate(tasks), np.concatenate(rows)

    def _make_cycle(self, cycle: int) -> tuple[Integers, Integers]:
        before, after = self._drawn(cycle), self._drawn(cycle + 1)
        counts = [stop - start for start, stop in zip(before, after, strict=True)]
        rng = np.random.default_rng([self.seed, 1, cycle])
        places = np.concatenate([(np.arange(count) + rng.random(count)) / max(count, 1) for count in counts])
        tasks = np.repeat(np.arange(len(counts)), counts)
        rows = np.concatenate([self._rows(task, before[task], after[task]) for task in range(len(counts))])
        order = np.argsort(places, kind="stable")
        return tasks[order], rows[order]

    def _drawn(self, cycles: int) -> list[int]:
        """Rows drawn from each task [K] in the first `cycles` cycles; the largest remainders are rounded up."""
        exact = [fraction * cycles * self.cycle_rows for fraction in self.fractions]
        drawn = [int(value) for value in exact]
        by_remainder = sorted(range(len(exact)), key=lambda task: drawn[task] - exact[task])
        for task in by_remainder[: cycles * self.cycle_rows - sum(drawn)]:
            drawn[task] += 1
        return drawn

    def _rows(self, task: int, start: int, stop: int) -> Integers:
        """The rows at positions start..stop of one task's endless stream of shuffled epochs."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.row_counts[task])
            order = self._order(task, epoch)[offset : offset + stop - start]
            parts.append(order)
            start += len(order)
        return np.concatenate(parts)

    def _make_order(self, task: int, epoch: int) -> Integers:
        return np.random.default_rng([self.seed, 2, task, epoch]).permutation(self.row_counts[task])


@dataclass(frozen=True)
class StepPlan:
    """How the stream is cut into optimizer steps, and a step into the micro-batches of each rank.

    Step s has the rows `[s * G, (s + 1) * G)` of the stream, G = batch_size * accumulation * world_size; the last step may
    have fewer. A step of n rows is cut into chunks of nearly equal size: micro-batch m of rank r is chunk
    `m * world_size + r`. All ranks have the same number of micro-batches; a chunk is empty only if n < world_size.
    """

    mixture: Mixture
    batch_size: int
    accumulation: int
    world_size: int
    total_rows: int
    lengths: tuple[NDArray[np.int32], ...] | None = None
    """Per task the length of each row, to group rows of similar length; None keeps the order of the stream."""
    fixed_step_rows: int | None = None
    """G of a run that started on another number of ranks: its steps keep their rows, in more or fewer micro-batches."""

    @property
    def step_rows(self) -> int:
        """G: rows of a full step over all ranks."""
        return self.fixed_step_rows or self.batch_size * self.accumulation * self.world_size

    @property
    def total_steps(self) -> int:
        """Steps until total_rows are used up."""
        return -(-self.total_rows // self.step_rows)

    def step(self, step: int) -> tuple[Integers, Integers]:
        """Tasks and rows of one step over all ranks [n], in the order of the chunks."""
        if self.lengths is None:
            return self.mixture.take(step * self.step_rows, min((step + 1) * self.step_rows, self.total_rows))
        return self._grouped_step(step, self.lengths)

    def _grouped_step(self, step: int, lengths: tuple[NDArray[np.int32], ...]) -> tuple[Integers, Integers]:
        """Sort a window of the stream by length, cut it into chunks of batch_size, and assign these to its steps at random.

        The window is one step if that has at least eight chunks, otherwise as many steps as give eight. Every row of the stream
        stays in exactly one step.
        """
        chunks_a_step = -(-self.step_rows // self.batch_size)
        window_steps = -(-8 // chunks_a_step)
        window, within = divmod(step, window_steps)
        start = window * window_steps * self.step_rows
        tasks, rows = self.mixture.take(start, min(start + window_steps * self.step_rows, self.total_rows))
        sizes = np.array([lengths[task][row] for task, row in zip(tasks, rows, strict=True)])
        by_length = np.argsort(sizes, kind="stable")
        full = len(by_length) // self.batch_size
        dealt = np.random.default_rng([self.mixture.seed, 3, window]).permutation(full)
        order = np.concatenate(
            [
                by_length[: full * self.batch_size].reshape(full, self.batch_size)[dealt].ravel(),
                by_length[full * self.batch_size :],
            ]
        )
        chosen = order[within * self.step_rows : (within + 1) * self.step_rows]
        return tasks[chosen], rows[chosen]

    def micro_batches(self, num_rows: int, rank: int) -> list[slice]:
        """One rank's micro-batches of a step of `num_rows` rows, as slices of the step."""
        count = -(-num_rows // (self.batch_size * self.world_size))
        chunks = count * self.world_size
        edges = [num_rows * chunk // chunks for chunk in range(chunks + 1)]
        return [slice(edges[m * self.world_size + rank], edges[m * self.world_size + rank + 1]) for m in range(count)]
