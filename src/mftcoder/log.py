"""The messages of a verb while it works: lines through `logging`, and calls that move a progress bar.

Only rank 0 sends messages. Nothing is printed here: the command line prints the lines and draws the bars, and a script that calls a
verb gets the lines with `logging.basicConfig(level=logging.INFO)`.
"""

import logging
import os
from typing import Protocol

LOGGER = logging.getLogger("mftcoder")
LOGGER.addHandler(logging.NullHandler())  # without a handler, Python would print warnings itself
REPEATED = logging.getLogger("mftcoder.progress")
"""Lines with the same content as a progress bar: a handler that draws the bar omits them."""


class OnProgress(Protocol):
    """Called when a verb makes progress: `done` of `total` (None if unknown), and a note such as `12/40 pass`."""

    def __call__(self, title: str, done: float, total: float | None, note: str = "") -> None:
        """Show the progress."""


def no_progress(title: str, done: float, total: float | None, note: str = "") -> None:
    """An `OnProgress` that shows nothing."""


def say(line: str) -> None:
    """Log one line."""
    _log(LOGGER, logging.INFO, line)


def warn(line: str) -> None:
    """Log a warning: one line that the user should act on."""
    _log(LOGGER, logging.WARNING, line)


def say_progress(line: str) -> None:
    """Log one line with the same content as a progress bar."""
    _log(REPEATED, logging.INFO, line)


def _log(logger: logging.Logger, level: int, line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, "%s", line, stacklevel=3)


def silence_libraries() -> None:
    """Drop what libraries say about themselves at import: call it before transformers or peft is imported.

    Both import bitsandbytes and torchao where these are installed. They warn of kernels for other machines, bitsandbytes later of every
    cast of its inputs, and torchao makes torch warn of a deprecated call.
    """
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
