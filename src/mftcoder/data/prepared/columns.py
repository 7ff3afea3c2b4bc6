"""The samples of one task and split as memory-mapped columns, and what was counted when they were made.

Read only: `merging.py` writes the columns, `store.py` knows which folder is whose.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mftcoder.data.rendering.tokenization import TokenizedSample, Tokens, to_sample

Split = Literal["train", "validation"]
COLUMNS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "ends": np.int64,
    "trained": np.int32,
    "files": np.int32,
    "lines": np.int64,
}


@dataclass(frozen=True)
class TaskStatistics:
    """Counts of one task. A sample is what one row position range holds; a record is one line of input."""

    records: int = 0
    """Valid records in the training files."""
    samples: int = 0
    """Samples to train on."""
    tokens: int = 0
    """Their input positions."""
    trained_tokens: int = 0
    """Their positions with a target."""
    validation_samples: int = 0
    """Samples held out or given for validation."""
    validation_tokens: int = 0
    """Their positions with a target."""
    truncated: int = 0
    """Samples cut at max_length."""
    split: int = 0
    """Samples that are pieces of a longer record."""
    dropped: int = 0
    """Records left out because they are longer than max_length."""
    untrained: int = 0
    """Records left out because no trained token is within max_length."""
    skipped: int = 0
    """Problems passed over with data.on_error: skip."""
    duplicates: int = 0
    """Training records whose content stands in the task more than once, beyond the first."""
    overlap: int = 0
    """Training records left out because their content is in a validation set."""
    unused: int = 0
    """Records beyond max_samples."""


@dataclass(frozen=True)
class TaskSamples:
    """The N samples of one task and split, read from disk when asked for. Travels to other processes by its path."""

    folder: Path
    task: int
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self._columns["ends"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "task": self.task, "paths": self.paths}

    @cached_property
    def _columns(self) -> dict[str, NDArray]:
        return {name: _map(self.folder / name, kind) for name, kind in COLUMNS.items()}

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Input positions of each sample [N]."""
        return (np.diff(self._columns["ends"], prepend=0) - 1).astype(np.int32)

    @property
    def trained_tokens(self) -> NDArray[np.int32]:
        """Positions with a target of each sample [N]; at least 1."""
        return self._columns["trained"]

    def sample(self, index: int) -> TokenizedSample:
        """One sample, with the origin `path:line` of its record."""
        ends = self._columns["ends"]
        stored = np.array(self._columns["tokens"][ends[index - 1] if index else 0 : ends[index]])
        trained = stored < 0
        tokens = Tokens(np.where(trained, ~stored, stored), trained)
        origin = f"{self.paths[self._columns['files'][index]]}:{self._columns['lines'][index]}"
        return to_sample(tokens, task=self.task, origin=origin)


def _map(path: Path, kind: type[np.generic]) -> NDArray:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)
