"""TokenizedSamples -> PackedRows: which samples share a row, and how a row is laid out. Pure numpy.

The plan needs only the lengths; a row is assembled when it is needed. Samples of a row never see each other: positions restart
with each sample, and attention stays inside `segment_lengths`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mftcoder.data.rendering.tokenization import IGNORED, TokenizedSample
from mftcoder.errors import DataError

PADDING_TOKEN = 0
"""Input id of padding. Any id would do: padding is a segment of its own without trained tokens."""
PADDING_TASK = -1


@dataclass(frozen=True)
class RowPlan:
    """N samples in R rows: row r holds the samples `members[offsets[r]:offsets[r + 1]]`, in that order."""

    offsets: NDArray[np.int64]  # [R + 1]
    members: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> NDArray[np.int64]:
        return self.members[self.offsets[index] : self.offsets[index + 1]]

    def fill(self, lengths: NDArray[np.integer], row_length: int) -> float:
        """The fraction of all positions that samples fill, 0..1; 0 without rows."""
        return float(lengths.sum(dtype=np.int64) / (len(self) * row_length)) if len(self) else 0.0

    def sums(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Per row [R] the sum of a per-sample value, for example of lengths or of trained tokens."""
        totals = np.concatenate([[0], np.cumsum(values[self.members], dtype=np.int64)])
        return totals[self.offsets[1:]] - totals[self.offsets[:-1]]


def plan_rows(lengths: NDArray[np.integer], packing: Literal["best_fit", "none"], row_length: int) -> RowPlan:
    """The rows of samples of these lengths; `packing` is the setting data.packing."""
    return pack_best_fit(lengths, row_length) if packing == "best_fit" else one_per_row(len(lengths))


def one_per_row(num_samples: int) -> RowPlan:
    """One row per sample, in order."""
    return RowPlan(np.arange(num_samples + 1, dtype=np.int64), np.arange(num_samples, dtype=np.int64))


def pack_best_fit(lengths: NDArray[np.integer], row_length: int) -> RowPlan:
    """Best-fit decreasing: longest first, each into the fullest row that it fits into. Lengths must be 1..row_length.

    Samples of equal length are placed together, so the work grows with the number of different lengths, not of samples.
    [5, 3, 2, 4, 2] into rows of 8 -> rows {5, 3} and {4, 2, 2}.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths must lie in 1..{row_length}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    if not len(order):
        return one_per_row(0)
    open_rows = _OpenRows(row_length)
    groups = np.split(order, starts[1:])
    rows = np.concatenate([open_rows.place(int(lengths[group[0]]), len(group)) for group in groups])
    by_row = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=open_rows.count)
    return RowPlan(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), order[by_row].astype(np.int64))


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """The samples of each row, by their numbers: best-fit decreasing into rows of `row_length`. DataError if one does not fit.

    [5, 3, 2, 4, 2] into rows of 8 -> [[0, 1], [3, 2, 4]].
    """
    if not isinstance(row_length, Integral) or row_length < 1:
        raise DataError(f"row_length: must be a whole number of at least 1, not {row_length!r}")
    for number, length in enumerate(lengths):
        if not isinstance(length, Integral) or not 1 <= length <= row_length:
            raise DataError(
                f"lengths[{number}]: must be a whole number between 1 and the row length {row_length}, not {length!r}"
            )
    plan = pack_best_fit(np.asarray(lengths, np.int64), int(row_length))
    return [plan.row(index).tolist() for index in range(len(plan))]


class _OpenRows:
    """Rows by their free positions. Rows with the same number are interchangeable, so they are moved many at a time."""

    def __init__(self, row_length: int):
        self.row_length = row_length
        self.count = 0
        self.by_space: defaultdict[int, list[NDArray[np.int64]]] = defaultdict(list)
        self.spaces = 0  # bit n is set while some row has n free positions

    def place(self, length: int, count: int) -> NDArray[np.int64]:
        """The rows [count] that take `count` samples of this length, in order."""
        placed: list[NDArray[np.int64]] = []
        while count:
            rows, space = self._tightest(length, count)
            per_row = min(space // length, count)
            full = min(len(rows), count // per_row)
            placed.append(np.repeat(rows[:full], per_row))
            self._keep(rows[:full], space - per_row * length)
            self._keep(rows[full:], space)
            count -= full * per_row
        return np.concatenate(placed)

    def _tightest(self, length: int, count: int) -> tuple[NDArray[np.int64], int]:
        """The rows with the fewest free positions that still fit `length`, and that number; new rows if there are none."""
        fitting = self.spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            self.spaces &= ~(1 << space)
            return np.concatenate(self.by_space.pop(space)), space
        new = -(-count // (self.row_length // length))
        self.count += new
        return np.arange(self.count - new, self.count, dtype=np.int64), self.row_length

    def _keep(self, rows: NDArray[np.int64], space: int) -> None:
        if len(rows) and space:
            self.by_space[space].append(rows)
            self.spaces |= 1 << space


@dataclass(frozen=True)
class PackedRow:
    """One row of L positions: S segments in sequence; padding at the end, if any, is a segment of its own."""

    input_ids: NDArray[np.int32]  # [L]
    targets: NDArray[np.int32]  # [L] -100 where no token is trained
    position_ids: NDArray[np.int32]  # [L] 0 starts a segment
    task_ids: NDArray[np.int16]  # [L] -1 on padding
    segment_lengths: NDArray[np.int32]  # [S]


def assemble(samples: Sequence[TokenizedSample], row_length: int) -> PackedRow:
    """Concatenate samples and fill the row with padding; ValueError if they do not fit."""
    lengths = [length for sample in samples for length in sample.lengths]
    used = sum(lengths)
    if used > row_length:
        raise ValueError(f"samples of {used} positions do not fit into a row of {row_length}")
    row = PackedRow(
        input_ids=np.full(row_length, PADDING_TOKEN, np.int32),
        targets=np.full(row_length, IGNORED, np.int32),
        position_ids=np.empty(row_length, np.int32),
        task_ids=np.full(row_length, PADDING_TASK, np.int16),
        segment_lengths=np.array(lengths + [row_length - used] * (used < row_length), np.int32),
    )
    start = 0
    for sample in samples:
        here = slice(start, start + len(sample.input_ids))
        row.input_ids[here], row.targets[here], row.task_ids[here] = sample.input_ids, sample.targets, sample.task
        row.position_ids[here] = np.concatenate([np.arange(length, dtype=np.int32) for length in sample.lengths])
        start += len(sample.input_ids)
    row.position_ids[used:] = np.arange(row_length - used, dtype=np.int32)
    return row
