"""The progress bar of long commands, so that all of them look alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MoveBar(Protocol):
    """Sets the bar to `done` of `total` (as before where it is None), with a note behind it."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None: ...


@contextmanager
def progress_bar(
    title: str,
    console: Console,
    *,
    total: int | None = None,
    done: int = 0,
    in_bytes: bool = False,
    vanishes: bool = False,
) -> Iterator[MoveBar]:
    """A bar while the block runs, `done` at its start. `vanishes` removes it at the end; `in_bytes` shows sizes, not counts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=vanishes) as bar:
        line = bar.add_task(escape(title), total=total, completed=done, note="")

        def move(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(line, completed=done, total=total, note=note)

        yield move
