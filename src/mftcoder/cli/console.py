"""What commands print: the lines that a verb tells, its progress bars, tables. Of several processes rank 0 prints."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mftcoder.errors import Interrupted
from mftcoder.log import LOGGER, REPEATED, OnProgress

if TYPE_CHECKING:
    from rich.console import Console

    from mftcoder.config.schema import RunConfig


def console(*, stderr: bool = False) -> "Console":
    """Where rank 0 prints; silent on the other ranks."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=os.environ.get("RANK", "0") != "0")


@contextmanager
def shown(*, stderr: bool = False, bars_in_files: bool = False) -> Iterator[OnProgress]:
    """Print the lines of the verb that runs in this block, and draw what it tells the `OnProgress` that comes with it.

    Without a terminal there are no bars; `bars_in_files` leaves the last state of each there.
    """
    output = console(stderr=stderr)
    bars = _Bars(output, in_files=bars_in_files)
    handler = _LineHandler(output)
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield bars.show
    finally:
        bars.stop()
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


class _LineHandler(logging.Handler):
    """Prints each line as it is, warnings in yellow; a bar says the repeated ones where there is a terminal."""

    def __init__(self, output: "Console"):
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == REPEATED.name and self._output.is_terminal:
            return
        style = "yellow" if record.levelno >= logging.WARNING else ""
        self._output.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """A progress bar for each title that a verb tells of; the one before ends where the next begins."""

    def __init__(self, output: "Console", *, in_files: bool):
        self._output, self._in_files = output, in_files
        self._progress: Any = None
        self._title = ""
        self._bar: Any = None

    def show(self, title: str, done: float, total: float | None, note: str = "") -> None:
        """Draw `done` of `total`."""
        if self._output.quiet or not (self._output.is_terminal or self._in_files):
            return
        if self._progress is None or title != self._title:
            self._begin(title)
        count = "" if total is None else f"{done / total:.0%}" if total >= 1e6 else f"{done:.0f}/{total:.0f}"
        self._progress.update(self._bar, completed=done, total=total, note=note, count=count)

    def _begin(self, title: str) -> None:
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.stop()
        columns = ("{task.description}", BarColumn(bar_width=24), "{task.fields[count]}", TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
        self._progress, self._title = Progress(*columns, *left, console=self._output), title
        self._bar = self._progress.add_task(escape(title), total=None, note="", count="")
        self._progress.start()

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def loaded_config(path: Path, overrides: Sequence[str]) -> "RunConfig":
    """The config of a command; what a reader should know about it is printed."""
    from mftcoder.config.load import load_config

    with shown(stderr=True):
        return load_config(path, overrides)


@contextmanager
def hint_with_command() -> Iterator[None]:
    """End the hint of an interrupted verb with the command that goes on: `Go on with: mft train my.yaml`."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop.hint} with: {typed_command()}", requeue=stop.requeue) from stop


def typed_command() -> str:
    return shlex.join(["mft", *sys.argv[1:]])
