"""The process of a run: the lock on its folder, the clean stop on a signal, determinism, and the error for a full device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mftcoder.errors import ConfigError, TrainingError, reason
from mftcoder.jsonl import locked

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_TORCH_STATE = threading.RLock()  # random numbers, default dtype and determinism are the process's, not a thread's
HOST_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # torch's message, in a plain RuntimeError


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; ConfigError if another run has locked it, or if it cannot be written."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock"))
        except BlockingIOError as error:
            raise ConfigError(
                f"output_dir: {folder}: another run is writing there. Wait for it or choose another folder."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"output_dir: {folder}: cannot be written: {error.strerror}. Choose another folder."
            ) from error
        yield


@contextmanager
def device_memory_errors(where_to_go_on: Callable[[], str] = str) -> Iterator[None]:
    """Turn out-of-memory into an error with remedies. `where_to_go_on` gives a sentence about the last checkpoint."""
    try:
        yield
    except RuntimeError as error:  # the base class of torch.OutOfMemoryError
        if not isinstance(error, torch.OutOfMemoryError) and HOST_IS_FULL not in str(error):
            raise
        raise TrainingError(
            f"the device ran out of memory: {reason(error)} Try train.gradient_checkpointing=true, a smaller "
            "train.per_device_train_batch_size with more gradient_accumulation_steps, or a smaller data.max_length; "
            f"`mft validate` estimates what a run takes. {where_to_go_on()}".rstrip()
        ) from error


def compute_deterministically() -> None:
    """Make GPU kernels give the same bits each time; a kernel that cannot raises RuntimeError. Call it before the GPU is used."""
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS needs this for determinism
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # takes time and is of no use here


@contextmanager
def torch_state_kept() -> Iterator[None]:
    """Restore torch's random state and its settings of determinism after the block; also usable as a decorator.

    Other threads that come here wait, so that two runs do not draw from one stream of random numbers.
    """
    with _TORCH_STATE:
        deterministic: Any = torch.utils.deterministic
        enabled, warn_only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        fill, workspace = deterministic.fill_uninitialized_memory, os.environ.get(CUBLAS_WORKSPACE)
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(gpus):
            try:
                yield
            finally:
                torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
                deterministic.fill_uninitialized_memory = fill
                os.environ.pop(CUBLAS_WORKSPACE, None)
                if workspace is not None:
                    os.environ[CUBLAS_WORKSPACE] = workspace


class StopRequest:
    """True after SIGINT or SIGTERM; a second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals inside the block; restore the previous handlers after it. Only the main thread can handle signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
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
    """True if torchrun restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
