"""What surrounds a run: one process per run folder, a clean stop on a signal, an answer to a full device.

Goes in: the run folder. Comes out: a lock that dies with its process, and a flag that a signal raises. Knows nothing of models.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mftcoder.errors import ConfigError, TrainingError, reason

HOST_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # how torch says it, as a plain RuntimeError


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; ConfigError if another run has it or if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"output_dir: {folder}: cannot be written: {error.strerror}. Choose another folder."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"output_dir: {folder}: another run is writing there. Wait for it or choose another folder."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def device_memory_errors() -> Iterator[None]:
    """A device that runs out of memory is the user's to mend: say with what."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError of a GPU is one
        if not isinstance(error, torch.OutOfMemoryError) and HOST_IS_FULL not in str(error):
            raise
        raise TrainingError(
            f"the device ran out of memory: {reason(error)} Try train.gradient_checkpointing=true, a smaller "
            "train.per_device_train_batch_size with more gradient_accumulation_steps, or a smaller data.max_length; "
            "`mft validate` estimates what a run takes."
        ) from error


def compute_deterministically() -> None:
    """From here on GPU kernels give the same bits each time; one that cannot raises RuntimeError. Call it before a GPU is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # which costs time and is of no use here


class StopRequest:
    """True once SIGINT or SIGTERM came in; the second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, and give them back."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def restarted() -> bool:
    """Whether torchrun started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
