"""The samples of one task and split as memory-mapped columns: their reader, their writer, and the counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from mftcoder.data.prepared.blocks import SPLIT, TRUNCATED, BlockRows
from mftcoder.data.records.files import SourceFile
from mftcoder.data.rendering.tokenization import TokenizedSample, Tokens, to_sample

Split = Literal["train", "validation"]
COLUMNS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "ends": np.int64,
    "trained": np.int32,
    "files": np.int32,
    "lines": np.int64,
}
PAIR_COLUMNS: dict[str, type[np.generic]] = {"second": np.int32, "desirable": np.bool_}
"""Columns that only a task of pairs has."""
REWARD_COLUMNS: dict[str, type[np.generic]] = {"reward": np.float64, "mean": np.float64, "deviation": np.float64}
"""Columns that only a task of sampled answers has."""


@dataclass(frozen=True)
class TaskStatistics:
    """Counts of one task. A record is one line of input; it becomes one sample, several (split) or none."""

    records: int = 0
    """Valid records in the training files."""
    samples: int = 0
    """Samples to train on."""
    tokens: int = 0
    """Input positions of the training samples."""
    trained_tokens: int = 0
    """Trained tokens of the training samples."""
    validation_samples: int = 0
    """Samples held out or given for validation."""
    validation_tokens: int = 0
    """Trained tokens of the validation samples."""
    truncated: int = 0
    """Samples cut at max_length."""
    split: int = 0
    """Samples that are pieces of a longer record."""
    dropped: int = 0
    """Records left out because they are longer than max_length."""
    untrained: int = 0
    """Records left out because no trained token is within max_length."""
    skipped: int = 0
    """Records that cannot be used, left out with data.on_error: skip; those for validation too."""
    problems: int = 0
    """What is wrong with them, a record may have several, and files that hold nothing or end too early."""
    duplicates: int = 0
    """Training records with the content of an earlier record of the task."""
    overlap: int = 0
    """Training records left out because their content is in a validation set."""
    unused: int = 0
    """Records beyond max_samples."""
    fim: int = 0
    """Training records rearranged for fill-in-the-middle, before any were held out."""


@dataclass(frozen=True)
class TaskSamples:
    """The N samples of one task and split, read from disk on demand. Pickling sends the path, not the samples."""

    folder: Path
    task: int
    files: tuple[SourceFile, ...]

    def __len__(self) -> int:
        return len(self._columns["ends"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "task": self.task, "files": self.files}

    @cached_property
    def _columns(self) -> dict[str, NDArray]:
        columns = COLUMNS | (PAIR_COLUMNS if self.has_pairs else {}) | (REWARD_COLUMNS if self.has_rewards else {})
        return {name: _map(self.folder / name, kind) for name, kind in columns.items()}

    @cached_property
    def has_pairs(self) -> bool:
        return (self.folder / "second").exists()

    @cached_property
    def has_rewards(self) -> bool:
        """Whether each sample is a sampled answer with a reward."""
        return (self.folder / "reward").exists()

    @property
    def is_unit(self) -> bool:
        """Whether the loss of the task is a mean over samples, not over tokens."""
        return self.has_pairs or self.has_rewards

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Reward, mean of the group, and standard deviation of the group [3, N]."""
        return np.stack([self._columns[name] for name in REWARD_COLUMNS])

    @property
    def desirable(self) -> NDArray[np.bool_]:
        """The label of each labelled answer [N]; true in pairs of a chosen and a rejected answer."""
        return self._columns["desirable"]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Input positions of each sample [N]."""
        return (np.diff(self._columns["ends"], prepend=0) - (2 if self.has_pairs else 1)).astype(np.int32)

    def longest_text(self) -> int:
        """Input positions of the longest text; each of the two texts of a pair is one."""
        second = self._columns["second"] - 1 if self.has_pairs else self.lengths
        return int(np.maximum(second, self.lengths - second).max(initial=0))

    @property
    def trained_tokens(self) -> NDArray[np.int32]:
        """Trained tokens of each sample [N], at least 1; of a pair those of its first text."""
        return self._columns["trained"]

    def documents(self, *, run_on: bool) -> Iterator[NDArray[np.int32]]:
        """The token ids as they were before they were cut: of each record; of the rows if records `run_on`, each token in one row."""
        ends, lines, files = (self._columns[name] for name in ("ends", "lines", "files"))
        waiting: list[NDArray[np.int32]] = []  # pieces of one document, without the tokens that two of them share
        for index, end in enumerate(ends.tolist()):
            stored = np.array(self._columns["tokens"][ends[index - 1] if index else 0 : end])
            ids = np.where(stored < 0, ~stored, stored)
            last = index + 1 == len(ends)
            goes_on = not last and (run_on or (lines[index], files[index]) == (lines[index + 1], files[index + 1]))
            waiting.append(ids[:-1] if goes_on else ids)
            if run_on or not goes_on:
                yield np.concatenate(waiting)
                waiting = []

    def sample(self, index: int) -> TokenizedSample:
        """One sample, with the origin `path:line` of its record."""
        ends = self._columns["ends"]
        stored = np.array(self._columns["tokens"][ends[index - 1] if index else 0 : ends[index]])
        trained = stored < 0
        second = int(self._columns["second"][index]) if self.has_pairs else 0
        tokens = Tokens(np.where(trained, ~stored, stored), trained, second)
        origin = self.files[self._columns["files"][index]].origin(int(self._columns["lines"][index]))
        return to_sample(tokens, task=self.task, origin=origin)


def _map(path: Path, kind: type[np.generic]) -> NDArray:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)


class ColumnWriter:
    """Writes the columns of one task and split by appending, and counts."""

    def __init__(self, folder: Path, *, pairs: bool = False, rewards: bool = False):
        self.folder = folder
        self._types = COLUMNS | (PAIR_COLUMNS if pairs else {}) | (REWARD_COLUMNS if rewards else {})
        self._texts = 2 if pairs else 1  # of a sample
        self.samples = self.tokens = self.trained = self.truncated = self.split = self._end = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._files = {name: (self.folder / name).open("wb") for name in self._types}
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, rows: BlockRows, chosen: NDArray[np.bool_], file: int) -> None:
        """Append the samples of a block that are `chosen` [N]; `file` is the number of their file in the task."""
        sizes = rows.sizes[chosen].astype(np.int64)
        columns: dict[str, NDArray] = {
            "tokens": rows.tokens[np.repeat(chosen, rows.sizes)],
            "ends": self._end + np.cumsum(sizes),
            "trained": rows.trained[chosen],
            "files": np.full(len(sizes), file),
            "lines": rows.lines[chosen],
            "second": rows.second[chosen],
            "desirable": rows.desirable[chosen],
            **{name: getattr(rows, name)[chosen] for name in REWARD_COLUMNS},
        }
        self._append(columns)
        self._end += int(sizes.sum())
        self.samples += len(sizes)
        self.tokens += int(sizes.sum()) - self._texts * len(sizes)
        self.trained += int(rows.trained[chosen].sum())
        self.truncated += int((rows.cut[chosen] == TRUNCATED).sum())
        self.split += int((rows.cut[chosen] == SPLIT).sum())

    def _append(self, columns: dict[str, NDArray]) -> None:
        for name, kind in self._types.items():
            self._files[name].write(np.ascontiguousarray(columns[name], kind).data)


class RunOnWriter(ColumnWriter):
    """Lets the records run on, and cuts them into samples of `row_length` positions without loss; the last one may be shorter.

    The last target of a sample is the first input of the next one, so every token but the first is a target exactly once. A sample has
    the origin of the record that its first token is from.
    """

    def __init__(self, folder: Path, row_length: int):
        super().__init__(folder)
        self._row_length = row_length
        self._waiting = np.empty(0, np.int32)  # tokens that no sample has as its inputs yet
        self._origins = np.empty(
            (3, 0), np.int64
        )  # [3, R] of each record in them: its first token, its file and its line

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None and (self._waiting[1:] < 0).any():
            self._write(self._waiting[None])
        super().__exit__(*exception)

    def add(self, rows: BlockRows, chosen: NDArray[np.bool_], file: int) -> None:
        """Append the records of a block that are `chosen` [N], and write the samples that are complete."""
        sizes = rows.sizes[chosen].astype(np.int64)
        starts = len(self._waiting) + np.cumsum(sizes) - sizes
        origins = np.stack([starts, np.full(len(sizes), file), rows.lines[chosen]])
        self._origins = np.concatenate([self._origins, origins], axis=1)
        self._waiting = np.concatenate([self._waiting, rows.tokens[np.repeat(chosen, rows.sizes)]])
        complete = max(0, len(self._waiting) - 1) // self._row_length
        if complete:
            windows = np.lib.stride_tricks.sliding_window_view(self._waiting, self._row_length + 1)
            self._write(windows[: complete * self._row_length : self._row_length])

    def _write(self, samples: NDArray[np.int32]) -> None:
        """Write samples [S, L + 1] from the first waiting token on, and keep the tokens after them."""
        count, size = samples.shape
        used = count * (size - 1)
        record = np.searchsorted(self._origins[0], np.arange(0, used, size - 1), side="right") - 1
        trained = (samples[:, 1:] < 0).sum(axis=1)
        columns: dict[str, NDArray] = {
            "tokens": samples,
            "ends": self._end + size * np.arange(1, count + 1),
            "trained": trained,
            "files": self._origins[1][record],
            "lines": self._origins[2][record],
        }
        self._append(columns)
        self.samples += count
        self.tokens += used
        self.trained += int(trained.sum())
        self._end += count * size
        self._waiting = self._waiting[used:]
        self._origins[0] -= used
        self._origins = self._origins[:, max(0, int((self._origins[0] <= 0).sum()) - 1) :]
