"""Every benchmark by name: `load("humaneval", Path("data"))` is a Benchmark, `tasks()` lists the names.

Each family has a table of its tasks; `registry.BENCHMARKS` lists the tables.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mftcoder.benchmarks.problem import Benchmark, Task
from mftcoder.errors import BenchmarkError
from mftcoder.registry import BENCHMARKS, did_you_mean


def all_tasks() -> dict[str, Task]:
    """Task name -> task, of all families."""
    found: dict[str, Task] = {}
    for family in BENCHMARKS.names():
        table: Mapping[str, Task] = BENCHMARKS.load(family)
        found.update(table)
    return found


def tasks() -> list[str]:
    """All task names, sorted."""
    return sorted(all_tasks())


def load(task: str, data_dir: Path | None = None, limit: int | None = None) -> Benchmark:
    """The benchmark `task` with its first `limit` problems (None: all). BenchmarkError for an unknown name or missing data."""
    known = all_tasks()
    if task not in known:
        close = difflib.get_close_matches(task, known, n=1)
        hint = did_you_mean(task, known) if close else " `mft benchmarks` lists all."
        raise BenchmarkError(f"unknown task '{task}'.{hint}")
    if data_dir is not None and not data_dir.is_dir():
        raise BenchmarkError(f"{data_dir}: no such folder")
    return known[task].load(data_dir).limited(limit)


def expand(names: Iterable[str]) -> list[str]:
    """Task names, with groups replaced by their tasks; without duplicates, in order."""
    expanded = [task for name in names for task in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(expanded))


_LANGUAGES = ("python", "java", "js", "cpp", "go", "rust")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "qwen-competition": (
        *(f"humanevalsynthesize-{language}" for language in _LANGUAGES),
        *(f"humanevalfixtests-{language}" for language in _LANGUAGES),
        "mbpp",
    ),
    "exam": ("exam-complete", "exam-write", "exam-repair", "exam-test"),
}
"""Group name -> tasks. qwen-competition: 13 tasks, 2,468 problems. exam: made of your own code by `mft data mine --exam`."""
