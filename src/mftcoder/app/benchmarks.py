"""`mft benchmarks`: every task with its size, language, licence, and whether its data and its toolchain are here.

Goes in: a data folder, or none. Comes out: a table on standard output. Downloads and runs nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mftcoder.benchmarks.catalogue import GROUPS, all_tasks
from mftcoder.benchmarks.task import Task
from mftcoder.errors import BenchmarkError
from mftcoder.execution.languages import LANGUAGES


def list_benchmarks(data_dir: Path | None, pattern: str | None = None) -> None:
    """Print the tasks whose name holds `pattern`, then the groups."""
    if data_dir is not None and not data_dir.is_dir():
        raise BenchmarkError(f"{data_dir}: no such folder")
    chosen = {name: task for name, task in sorted(all_tasks().items()) if not pattern or pattern in name}
    console = Console()
    console.print(_table(chosen, data_dir))
    for name, members in GROUPS.items():
        sizes = sum(all_tasks()[member].problems for member in members)
        size = f"{sizes:,} problems" if sizes else "as many problems as were mined"
        console.print(f"group {name}: {len(members)} tasks, {size}", highlight=False)


def _table(chosen: Mapping[str, Task], data_dir: Path | None) -> Table:
    table = Table(Column("task", no_wrap=True), "language", "problems", "licence", "data", "toolchain")
    for name, task in chosen.items():
        row = LANGUAGES[task.language]
        missing = ", ".join(row.missing())
        toolchain = f"missing: {missing} ({row.install})" if missing else "here"
        table.add_row(
            name, row.title, str(task.problems or "yours"), task.licence, data_state(task, data_dir), toolchain
        )
    return table


def data_state(task: Task, data_dir: Path | None) -> str:
    """Where the data would come from, in a word."""
    if task.source is None:
        return "in the package"
    if data_dir is not None:
        return "here" if task.source.local_file(data_dir) else f"missing: {task.source.path}[.gz]"
    return f"Hub: {task.source.hub.repository}" if task.source.hub else "needs --data-dir"
