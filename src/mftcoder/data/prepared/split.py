"""Which records train and which validate: block files -> the columns of a store.

The choice depends on content hashes only, so it is the same for any order of files and any number of processes. One block is in
memory at a time.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig, TaskConfig
from mftcoder.config.kinds import GrpoKind, PreferenceKind, PretrainKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.blocks import BlockReport, BlockRows
from mftcoder.data.prepared.columns import ColumnWriter, RunOnWriter, Split, TaskStatistics
from mftcoder.errors import DataError

Hashes = NDArray[np.uint64]
_SAMPLING, _HOLDING_OUT = 1, 2  # salts that make the choices of max_samples and of val_size independent


@dataclass
class Tally:
    """The sum of the reports of one task's blocks; the block files of each split in order, each with its file's index."""

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
        counts = _merge_task(tally, choice, barred, task, target, index, config.data.max_length)
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
    return f"{task.path or 'files'}: task '{task.name}': no sample to train on ({', '.join(reasons) or 'no record'})"


def rank(hashes: Hashes, salt: int) -> Hashes:
    """A pseudo-random rank of each content (splitmix64 of the hash)."""
    with np.errstate(over="ignore"):
        mixed = hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def choose_held_out(contents: Hashes, fraction: float, most: int | None) -> Hashes:
    """The held-out ones among distinct contents, sorted: this fraction, at least one and never all, chosen by rank."""
    if fraction == 0 or len(contents) < 2:
        return contents[:0]
    number = min(max(round(fraction * len(contents)), 1), len(contents) - 1, most or len(contents))
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
    tally: Tally,
    choice: _Choice,
    barred: Hashes,
    task: TaskConfig,
    target: Path,
    index: int,
    row_length: int,
) -> TaskStatistics:
    def writer(split: Split) -> ColumnWriter:
        folder = target / f"{index}-{split}"
        runs_on = isinstance(task.kind, PretrainKind) and task.kind.documents == "packed"
        pairs, rewards = isinstance(task.kind, PreferenceKind), isinstance(task.kind, GrpoKind)
        return RunOnWriter(folder, row_length) if runs_on else ColumnWriter(folder, pairs=pairs, rewards=rewards)

    assigner = SplitAssigner(choice, barred, task.max_samples)
    with ExitStack() as stack:
        train = stack.enter_context(writer("train"))
        validation = stack.enter_context(writer("validation"))
        for file, path in tally.blocks["train"]:
            rows = BlockRows.load(path)
            to_train, to_validate = assigner.assign(rows)
            train.add(rows, to_train, file)
            validation.add(rows, to_validate, file)
        for file, path in tally.blocks["validation"]:
            rows = BlockRows.load(path)
            validation.add(rows, assigner.first_held_out(rows, np.ones(len(rows.sizes), bool)), file)
    read = {
        name: getattr(tally.report, name) for name in ("records", "dropped", "untrained", "skipped", "problems", "fim")
    }
    return TaskStatistics(
        **read,
        samples=train.samples,
        tokens=train.tokens,
        trained_tokens=train.trained,
        validation_samples=validation.samples,
        validation_tokens=validation.trained,
        truncated=train.truncated,
        split=train.split,
        duplicates=choice.duplicates,
        overlap=assigner.overlap,
        unused=assigner.unused,
    )


class SplitAssigner:
    """Assigns a task's records, in their order, to training, to validation or to neither, and counts."""

    def __init__(self, choice: _Choice, barred: Hashes, max_samples: int | None):
        self.choice, self.barred = choice, barred
        self.records_left = max_samples if max_samples is not None else 2**62
        self.seen = np.zeros(len(choice.held_out), bool)
        self.overlap = 0
        self.unused = 0

    def assign(self, rows: BlockRows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Per sample [N]: whether it trains, whether it validates."""
        used = self._within_max_samples(rows)
        validates = np.zeros(len(used), bool) if self.choice.given is not None else self.first_held_out(rows, used)
        barred = used & ~validates & np.isin(rows.hashes, self.barred)
        self.overlap += int(barred[rows.starts_record].sum())
        return used & ~validates & ~barred, validates

    def _within_max_samples(self, rows: BlockRows) -> NDArray[np.bool_]:
        records = rank(rows.hashes[rows.starts_record], _SAMPLING) <= self.choice.highest_rank
        records &= np.cumsum(records) <= self.records_left
        self.records_left -= int(records.sum())
        self.unused += int((~records).sum())
        return records[np.cumsum(rows.starts_record) - 1]

    def first_held_out(self, rows: BlockRows, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per sample [N]: whether its record is the first of the task with a content that is held out."""
        starts = np.flatnonzero(rows.starts_record)
        records = np.zeros(len(starts), bool)
        found = np.flatnonzero(used[starts] & np.isin(rows.hashes[starts], self.choice.held_out))
        for record in found:
            position = np.searchsorted(self.choice.held_out, rows.hashes[starts[record]])
            records[record] = not self.seen[position]
            self.seen[position] = True
        return records[np.cumsum(rows.starts_record) - 1]
