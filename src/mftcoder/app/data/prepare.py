"""`mft prepare`: records -> the store that training reads, with a progress bar and a table of what was found.

The same store is made by `mft train` when it is not there yet; preparing first shows the numbers, and the errors, sooner.
Needs no torch.
"""

from rich import box
from rich.console import Console
from rich.table import Table

from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.packing import plan_rows
from mftcoder.data.prepared import store as stores
from mftcoder.data.prepared.columns import TaskStatistics
from mftcoder.data.prepared.store import prepare_visibly

_COLUMNS = {
    "samples": "samples",
    "validation": "validation_samples",
    "tokens": "tokens",
    "trained\ntokens": "trained_tokens",
    "truncated": "truncated",
    "dropped": "dropped",
}
"""Always shown: title -> field of TaskStatistics."""
_RARE_COLUMNS = {
    "split": "split",
    "untrained": "untrained",
    "skipped": "skipped",
    "duplicates": "duplicates",
    "also in\nvalidation": "overlap",
    "beyond\nmax_samples": "unused",
}
"""Shown if any task has one."""


def prepare(config: RunConfig) -> None:
    """Make or find the store and print its table. DataError with all bad records."""
    console = Console()
    store = prepare_visibly(config)
    table = statistics_table(store, config)
    # A narrow terminal wraps the lines; numbers cut short would be worse.
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
    for problem in store.skipped[: config.data.max_errors]:
        console.print(f"skipped {problem}", highlight=False, markup=False, soft_wrap=True)
    hidden = sum(counts.skipped for counts in store.statistics) - min(len(store.skipped), config.data.max_errors)
    if hidden > 0:
        console.print(f"... and {hidden:,} more")
    console.print(f"store {store.folder}", highlight=False, markup=False, soft_wrap=True)


def statistics_table(store: stores.Store, config: RunConfig) -> Table:
    """One line a task and one for all: samples, validation, tokens, what was left out and why, how full the rows are."""
    rare = {
        title: name for title, name in _RARE_COLUMNS.items() if any(getattr(task, name) for task in store.statistics)
    }
    columns = _COLUMNS | rare
    table = Table(
        title=f"{len(store.tasks)} tasks, rows of {config.data.max_length:,} positions",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task", no_wrap=True)
    for title in (*columns, "rows", "row\nfill"):
        table.add_column(title, justify="right", no_wrap=True)
    for task, (name, counts) in enumerate(zip(store.tasks, store.statistics, strict=True)):
        table.add_row(
            name, *(f"{getattr(counts, field):,}" for field in columns.values()), *_row_cells(store, config, task)
        )
    if len(store.tasks) > 1:
        totals = (f"{_total(store.statistics, field):,}" for field in columns.values())
        table.add_section()
        table.add_row("all", *totals, "", "")
    return table


def _row_cells(store: stores.Store, config: RunConfig, task: int) -> tuple[str, str]:
    """Rows and their fill; with padding: dynamic rows are as long as their batch's longest, so there is no one number."""
    data = config.data
    lengths = store.train(task).lengths
    plan = plan_rows(lengths, data.packing, data.max_length)
    if data.packing == "none" and data.padding == "dynamic":
        return f"{len(plan):,}", "by batch"
    return f"{len(plan):,}", f"{100 * plan.fill(lengths, data.max_length):.1f}%"


def _total(statistics: tuple[TaskStatistics, ...], field: str) -> int:
    return sum(getattr(counts, field) for counts in statistics)
