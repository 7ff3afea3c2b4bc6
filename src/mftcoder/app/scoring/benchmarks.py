"""`mft benchmarks`: list every benchmark with its size, language and licence, and whether its data and its toolchain are here.

Below the table stands what is missing and how to get it. Downloads and runs nothing.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from mftcoder.benchmarks.catalogue import GROUPS, all_tasks
from mftcoder.benchmarks.problem import Task
from mftcoder.errors import BenchmarkError
from mftcoder.execution.languages import LANGUAGES
from mftcoder.reporting.terminal import print_list, print_table

_TITLES = ("task", "language", "size", "licence", "data", "tools")


def list_benchmarks(data_dir: Path | None, pattern: str | None = None) -> None:
    """Print the benchmarks whose name contains `pattern`, then what is missing, then the groups."""
    if data_dir is not None and not data_dir.is_dir():
        raise BenchmarkError(f"{data_dir}: no such folder")
    chosen = {name: task for name, task in sorted(all_tasks().items()) if not pattern or pattern in name}
    console = Console()
    rows = [_row(name, task, data_dir) for name, task in chosen.items()]
    print_table(console, _TITLES, rows, numbers=("size",))
    console.print()
    sources = [task.source for task in chosen.values() if task.source]
    if data_dir is None:
        found = Counter(source.hub.repository for source in sources if source.hub)
        repositories = (f"{name}: {count} task{'s' if count > 1 else ''}" for name, count in found.items())
        print_list(console, "data from the Hub, or give --data-dir:", repositories)
    else:
        missing = dict.fromkeys(source.path for source in sources if not source.local_file(data_dir))
        print_list(console, f"missing in {data_dir}, with or without .gz:", missing)
    print_list(console, "missing tools:", _missing_tools(chosen.values()))
    print_list(console, "groups:", _groups())


def _row(name: str, task: Task, data_dir: Path | None) -> tuple[str, ...]:
    tools = "missing" if LANGUAGES[task.language].missing() else "here"
    return (name, task.language, str(task.problems or "yours"), task.licence, data_state(task, data_dir), tools)


def data_state(task: Task, data_dir: Path | None) -> str:
    """Where the data would come from, in one word."""
    if task.source is None:
        return "package"
    if data_dir is not None:
        return "here" if task.source.local_file(data_dir) else "missing"
    return "Hub" if task.source.hub else "missing"


def _missing_tools(tasks: Iterable[Task]) -> list[str]:
    """For each language with missing tools: how to get them."""
    languages = [LANGUAGES[name] for name in dict.fromkeys(task.language for task in tasks)]
    return [
        f"{language.title}: {', '.join(missing)}. {language.install}"
        for language in languages
        if (missing := language.missing())
    ]


def _groups() -> list[str]:
    known = all_tasks()
    sizes = {name: sum(known[member].problems for member in members) for name, members in GROUPS.items()}
    return [
        f"{name}: {len(GROUPS[name])} tasks, {f'{size:,} problems' if size else 'as many problems as were mined'}"
        for name, size in sizes.items()
    ]
