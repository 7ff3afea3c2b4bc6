"""Which row of which task comes next: a seeded, endless stream that any position can be read from. Pure arithmetic.

Goes in: row counts and a sampling mode. Comes out: (task, row) for any range of positions, with nothing replayed and no state
but the position. Knows no samples, no tensors, no ranks (`StepPlan` deals a step's rows to ranks and micro-batches).
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


def shares(
    row_counts: Sequence[int], sampling: Sampling, temperature: float, weights: Sequence[float]
) -> tuple[Fraction, ...]:
    """Each task's share of the stream [K], sum 1; a task without rows has none. Proportional shares are exact fractions."""
    raw = {
        "proportional": lambda: [Fraction(count) for count in row_counts],
        "uniform": lambda: [Fraction(1) for _ in row_counts],
        "temperature": lambda: [Fraction(float(count) ** (1 / temperature)) for count in row_counts],
        "weights": lambda: [Fraction(weight) for weight in weights],
    }[sampling]()
    present = [value if count else Fraction(0) for value, count in zip(raw, row_counts, strict=True)]
    total = sum(present)
    if not total:
        raise ValueError("no task has rows and a share above 0")
    return tuple(value / total for value in present)


class Mixture:
    """The stream comes in cycles. In each cycle a task's rows are spread evenly over it, at places moved by chance.

    Proportional: a cycle is an epoch, and has every row exactly once, in another order each time. Otherwise each task goes
    through its own shuffled epochs, and after any number of cycles its count is within one row of its exact share.
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
        self.shares = shares(row_counts, sampling, temperature, weights)
        self.epoch_rows = sum(self.row_counts)
        """Rows of a pass over the data: the sum over tasks, in every sampling mode."""
        # At least four rows of the rarest task a cycle, so that its count never has to step back.
        rarest = min(share for share in self.shares if share)
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
        """Rows drawn from each task [K] in the first `cycles` cycles: whole shares, the rest to the largest remainders."""
        exact = [share * cycles * self.cycle_rows for share in self.shares]
        drawn = [int(value) for value in exact]
        by_remainder = sorted(range(len(exact)), key=lambda task: drawn[task] - exact[task])
        for task in by_remainder[: cycles * self.cycle_rows - sum(drawn)]:
            drawn[task] += 1
        return drawn

    def _rows(self, task: int, start: int, stop: int) -> Integers:
        """The rows at positions start..stop of a task's own endless stream of shuffled epochs."""
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
    """How the stream is cut into optimizer steps, and a step into the rows of each rank's micro-batches.

    Step s has the rows `[s * G, (s + 1) * G)` of the stream, G = batch_size * accumulation * world_size; the last step may
    have fewer. A step of n rows is cut into chunks of as equal size as can be: micro-batch m of rank r is chunk
    `m * world_size + r`. All ranks have the same number of micro-batches; a chunk is empty only if n < world_size.
    """

    mixture: Mixture
    batch_size: int
    accumulation: int
    world_size: int
    total_rows: int
    lengths: tuple[NDArray[np.int32], ...] | None = None
    """Per task the length of each row, to group rows of similar length; None leaves the stream's order."""
    fixed_step_rows: int | None = None
    """G of a run that began on another number of ranks: its steps stay the same, in more or fewer micro-batches."""

    @property
    def step_rows(self) -> int:
        """G: rows of a full step over all ranks."""
        return self.fixed_step_rows or self.batch_size * self.accumulation * self.world_size

    @property
    def total_steps(self) -> int:
        """Steps until total_rows are used up."""
        return -(-self.total_rows // self.step_rows)

    def step(self, step: int) -> tuple[Integers, Integers]:
        """Tasks and rows of one step over all ranks [n], in the order in which they are cut into chunks."""
        if self.lengths is None:
            return self.mixture.take(step * self.step_rows, min((step + 1) * self.step_rows, self.total_rows))
        return self._grouped_step(step, self.lengths)

    def _grouped_step(self, step: int, lengths: tuple[NDArray[np.int32], ...]) -> tuple[Integers, Integers]:
        """Sort a window of the stream by length, cut it into chunks of batch_size, deal these to the window's steps by chance.

        The window is one step if that has at least eight chunks, else as many whole steps as give eight: a step's set of rows
        is then that of its chunks, every row of the stream still in exactly one step.
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

    def share(self, num_rows: int, rank: int) -> list[slice]:
        """The chunks of a step of `num_rows` rows that are one rank's micro-batches, in order."""
        micro_batches = -(-num_rows // (self.batch_size * self.world_size))
        chunks = micro_batches * self.world_size
        edges = [num_rows * chunk // chunks for chunk in range(chunks + 1)]
        return [
            slice(edges[m * self.world_size + rank], edges[m * self.world_size + rank + 1])
            for m in range(micro_batches)
        ]
