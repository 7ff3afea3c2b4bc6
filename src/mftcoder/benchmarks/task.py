"""A row of a family's table: how to load a task, and what `mft benchmarks` says of it without loading anything."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mftcoder.benchmarks.problem import Benchmark
from mftcoder.benchmarks.sources import Source


@dataclass(frozen=True)
class Task:
    """One name that `mft generate` and `mft evaluate` take."""

    load: Callable[[Path | None], Benchmark]
    language: str
    problems: int  # 0: as many as the user's own data has
    licence: str
    source: Source | None  # None: the data comes with the package
