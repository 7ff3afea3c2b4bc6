"""What a verb tells while it works: lines, through `logging`, and how far it has come, for a progress bar.

Of several processes rank 0 tells. Nothing is printed here: the command line prints the lines and draws the bars, and a script
that calls a verb gets the lines from `logging.basicConfig(level=logging.INFO)`.
"""

import logging
import os
from typing import Protocol

LOGGER = logging.getLogger("mftcoder")
LOGGER.addHandler(logging.NullHandler())  # without a handler, Python would print warnings itself
REPEATED = logging.getLogger("mftcoder.progress")
"""Lines that say what a progress bar shows: a handler that draws the bar leaves them out."""


class OnProgress(Protocol):
    """Told how far a verb has come: `done` of `total` (None if unknown), and a note such as `12/40 pass`."""

    def __call__(self, title: str, done: float, total: float | None, note: str = "") -> None:
        """Draw it, or not."""
        ...


def no_progress(title: str, done: float, total: float | None, note: str = "") -> None:
    """The `OnProgress` of somebody who does not watch."""


def say(line: str) -> None:
    """Tell one line."""
    _tell(LOGGER, logging.INFO, line)


def warn(line: str) -> None:
    """Tell one line that a person should act on."""
    _tell(LOGGER, logging.WARNING, line)


def say_progress(line: str) -> None:
    """Tell one line that a progress bar shows too."""
    _tell(REPEATED, logging.INFO, line)


def _tell(logger: logging.Logger, level: int, line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, "%s", line, stacklevel=3)
