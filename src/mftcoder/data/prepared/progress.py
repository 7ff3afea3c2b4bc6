"""Preparing with a progress bar: what `store.prepare` does, shown to the person who waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared import store as stores


def prepare_visibly(config: RunConfig) -> stores.Store:
    """The store of a config, as `store.prepare`; on a terminal with a bar while it is made."""
    with _progress_bar() as on_progress:
        return stores.prepare(config, on_progress=on_progress)


@contextmanager
def _progress_bar() -> Iterator[stores.OnProgress | None]:
    """A bar on the terminal's error stream; nothing where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("tokenising"),
        BarColumn(),
        DownloadColumn(binary_units=False),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("tokenising", total=None, counts="")

        def show(progress: stores.Progress) -> None:
            counts = f"{progress.records:,} records, {progress.tokens:,} tokens"
            bar.update(line, total=progress.bytes_total, completed=progress.bytes_done, counts=counts)

        yield show
