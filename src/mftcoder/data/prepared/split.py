"""Block files -> the arrays of a store: which records train, which validate, and in what order they lie.

Goes in: the block files of each task in file order. Comes out: folders of columns, and the counts. The choice looks at content
hashes only, so it is the same for any file order and any number of processes; one block is in memory at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig, TaskConfig
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.blocks import SPLIT, TRUNCATED, BlockReport, BlockRows
from mftcoder.data.prepared.columns import COLUMNS, Split, TaskStatistics
from mftcoder.errors import DataError

Hashes = NDArray[np.uint64]
_SAMPLING, _HOLDING_OUT = 1, 2  # salts: what max_samples leaves out says nothing about what is held out


@dataclass
class Tally:
    """Reports of one task's blocks, added up; the block files of each split in order, each with its file's index."""

    report: BlockReport = field(default_factory=BlockReport)
    blocks: dict[Split, list[tuple[int, Path]]] = field(default_factory=lambda: {"train": [], "validation": []})


@dataclass(frozen=True)
class _Choice:
    """Which contents of one task's training files are used, and which of those are held out (sorted)."""

    highest_rank: np.uint64
    held_out: Hashes
    given: Hashes | None
    duplicates: int


def merge_blocks(config: RunConfig, tallies: Sequence[Tally], target: Path) -> list[TaskStatistics]:
    """Write every task's training and validation samples below `target`. DataError if a task has nothing to train on."""
    choices = [_choose(task, tally, config.data) for task, tally in zip(config.tasks, tallies, strict=True)]
    barred = np.unique(
        np.concatenate([choice.held_out if choice.given is None else choice.given for choice in choices])
    )
    statistics, problems = [], []
    for index, (tally, choice) in enumerate(zip(tallies, choices, strict=True)):
        task = config.tasks[index]
        counts = _merge_task(tally, choice, barred, task, target, index)
        statistics.append(counts)
        if not counts.samples:
            problems.append(_nothing_left(task, counts))
    if problems:
        raise DataError(*problems)
    return statistics


def _nothing_left(task: TaskConfig, counts: TaskStatistics) -> str:
    reasons = [
        f"{getattr(counts, name)} {name}"
        for name in ("skipped", "dropped", "untrained", "overlap", "unused")
        if getattr(counts, name)
    ]
    return f"{task.path or 'files'}: task '{task.name}': no example to train on ({', '.join(reasons) or 'no record'})"


def rank(hashes: Hashes, salt: int) -> Hashes:
    """An order of contents that is random but fixed (splitmix64 of the hash)."""
    with np.errstate(over="ignore"):
        mixed = hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def choose_held_out(contents: Hashes, share: float, most: int | None) -> Hashes:
    """The held-out ones among distinct contents, sorted: the share, at least one and never all, chosen by rank."""
    if share == 0 or len(contents) < 2:
        return contents[:0]
    number = min(max(round(share * len(contents)), 1), len(contents) - 1, most or len(contents))
    ranks = rank(contents, _HOLDING_OUT)
    return np.sort(contents[np.argpartition(ranks, number - 1)[:number]])


def _choose(task: TaskConfig, tally: Tally, data: DataConfig) -> _Choice:
    hashes = _record_hashes([path for _, path in tally.blocks["train"]])
    highest = np.uint64(2**64 - 1)
    if task.max_samples is not None and len(hashes) > task.max_samples:
        ranks = rank(hashes, _SAMPLING)
        highest = np.partition(ranks, task.max_samples - 1)[task.max_samples - 1]
        hashes = hashes[ranks <= highest]
    contents = np.unique(hashes)
    duplicates = len(hashes) - len(contents)
    if not task.validation:
        return _Choice(highest, choose_held_out(contents, data.val_size, data.max_val_samples), None, duplicates)
    given = np.unique(_record_hashes([path for _, path in tally.blocks["validation"]]))
    kept = given
    if data.max_val_samples is not None and len(given) > data.max_val_samples:
        kept = np.sort(given[np.argsort(rank(given, _HOLDING_OUT))[: data.max_val_samples]])
    return _Choice(highest, kept, given, duplicates)


def _record_hashes(paths: Sequence[Path]) -> Hashes:
    parts = [np.empty(0, np.uint64)]
    for path in paths:
        with np.load(path) as arrays:
            parts.append(arrays["hashes"][arrays["starts_record"]])
    return np.concatenate(parts)


def _merge_task(
    tally: Tally, choice: _Choice, barred: Hashes, task: TaskConfig, target: Path, index: int
) -> TaskStatistics:
    assigner = SplitAssigner(choice, barred, task.max_samples)
    with ExitStack() as stack:
        train = stack.enter_context(_Columns(target / f"{index}-train"))
        validation = stack.enter_context(_Columns(target / f"{index}-validation"))
        for file, rows in _load(tally.blocks["train"]):
            to_train, to_validate = assigner.sort(rows)
            train.add(rows, to_train, file)
            validation.add(rows, to_validate, file)
        for file, rows in _load(tally.blocks["validation"]):
            validation.add(rows, assigner.first_held_out(rows, np.ones(len(rows.sizes), bool)), file)
    report = tally.report
    return TaskStatistics(
        records=report.records,
        samples=train.samples,
        tokens=train.tokens,
        trained_tokens=train.trained,
        validation_samples=validation.samples,
        validation_tokens=validation.trained,
        truncated=train.truncated,
        split=train.split,
        dropped=report.dropped,
        untrained=report.untrained,
        skipped=report.problems,
        duplicates=choice.duplicates,
        overlap=assigner.overlap,
        unused=assigner.unused,
    )


def _load(blocks: Sequence[tuple[int, Path]]) -> Iterator[tuple[int, BlockRows]]:
    for file, path in blocks:
        yield file, BlockRows.load(path)


class SplitAssigner:
    """Runs through a task's records in order and sends each to training, to validation or nowhere, and counts."""

    def __init__(self, choice: _Choice, barred: Hashes, max_samples: int | None):
        self.choice, self.barred = choice, barred
        self.room = max_samples if max_samples is not None else 2**62
        self.seen = np.zeros(len(choice.held_out), bool)
        self.overlap = 0
        self.unused = 0

    def sort(self, rows: BlockRows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Per sample [N]: whether it trains, whether it validates."""
        used = self._within_max_samples(rows)
        validates = np.zeros(len(used), bool) if self.choice.given is not None else self.first_held_out(rows, used)
        barred = used & ~validates & np.isin(rows.hashes, self.barred)
        self.overlap += int(barred[rows.starts_record].sum())
        return used & ~validates & ~barred, validates

    def _within_max_samples(self, rows: BlockRows) -> NDArray[np.bool_]:
        records = rank(rows.hashes[rows.starts_record], _SAMPLING) <= self.choice.highest_rank
        records &= np.cumsum(records) <= self.room
        self.room -= int(records.sum())
        self.unused += int((~records).sum())
        return records[np.cumsum(rows.starts_record) - 1]

    def first_held_out(self, rows: BlockRows, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per sample [N]: whether its record is the first in the task with a held-out content."""
        starts = np.flatnonzero(rows.starts_record)
        records = np.zeros(len(starts), bool)
        found = np.flatnonzero(used[starts] & np.isin(rows.hashes[starts], self.choice.held_out))
        for record in found:
            position = np.searchsorted(self.choice.held_out, rows.hashes[starts[record]])
            records[record] = not self.seen[position]
            self.seen[position] = True
        return records[np.cumsum(rows.starts_record) - 1]


class _Columns:
    """The columns of one task and split, written by appending; counts what it takes in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.samples = self.tokens = self.trained = self.truncated = self.split = self._end = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._files = {name: (self.folder / name).open("wb") for name in COLUMNS}
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, rows: BlockRows, chosen: NDArray[np.bool_], file: int) -> None:
        """Append the chosen samples [N] of a block of the task's file number `file`."""
        sizes = rows.sizes[chosen].astype(np.int64)
        columns: dict[str, NDArray] = {
            "tokens": rows.tokens[np.repeat(chosen, rows.sizes)],
            "ends": self._end + np.cumsum(sizes),
            "trained": rows.trained[chosen],
            "files": np.full(len(sizes), file),
            "lines": rows.lines[chosen],
        }
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values, COLUMNS[name]).data)
        self._end += int(sizes.sum())
        self.samples += len(sizes)
        self.tokens += int(sizes.sum()) - len(sizes)
        self.trained += int(rows.trained[chosen].sum())
        self.truncated += int((rows.cut[chosen] == TRUNCATED).sum())
        self.split += int((rows.cut[chosen] == SPLIT).sum())
