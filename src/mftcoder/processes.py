"""Child processes: they end with their parent, and they do not run the user's script again."""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from types import ModuleType

from mftcoder.errors import Interrupted

_PARENT = "MFTCODER_PARENT"
_PR_SET_PDEATHSIG = 1
_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3  # malloc.h


def following_environment() -> dict[str, str]:
    """The environment for a child `mft` command that must not outlive this process, even if this one is killed."""
    return {**os.environ, _PARENT: str(os.getpid())}


def follow_parent() -> None:
    """In a command with that environment: receive SIGTERM when the parent ends, so that a run saves and stops. Linux only."""
    parent = os.environ.pop(_PARENT, None)  # removed, because the children of this process have another parent
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # the parent ended before prctl was called
        signal.raise_signal(signal.SIGTERM)


def let_waiting_threads_sleep() -> None:
    """Let a waiting thread of GNU's OpenMP sleep after microseconds, unless the environment says otherwise. Call it before torch is imported.

    By default it spins for milliseconds. That makes small steps faster on quiet processors, and several times slower beside other work
    (docs/serving.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def import_numpy_without_threads() -> None:
    """Import numpy so that this process can be forked afterwards: its OpenBLAS starts a thread per core. For work without large products."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    importlib.import_module("numpy")
    del os.environ["OPENBLAS_NUM_THREADS"]
    if before is not None:
        os.environ["OPENBLAS_NUM_THREADS"] = before


@cache
def keep_freed_memory() -> None:
    """Let this process use the memory that it has freed again, instead of giving it back to the system. glibc only; elsewhere nothing happens.

    glibc gives blocks of megabytes back at once, depending on what was freed before. A forward pass on a CPU allocates hundreds of them, and
    the system would clear each of their pages anew (docs/serving.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
    mallopt(_M_TOP_PAD, 64 << 20)  # the size of a thread's heap: none is given back


def run_python(arguments: Sequence[str], *, capture: bool = False, go_on: str) -> tuple[int, str]:
    """Run `python ARGUMENTS` and return its exit code, and its standard output if that is captured; else it goes to the screen.

    On Ctrl-C the process may save before Interrupted is raised; its hint is `go_on`. If this process is killed, a command of
    `mft` saves and stops.
    """
    output = subprocess.PIPE if capture else None
    process = subprocess.Popen([sys.executable, *arguments], stdout=output, text=True, env=following_environment())
    try:
        written = process.communicate()[0] or ""
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise Interrupted(go_on) from None
    print(written, end="")
    if process.returncode == Interrupted(go_on).exit_code:
        raise Interrupted(go_on)
    return process.returncode, written


@contextmanager
def sigterm_as_interrupt(interrupt: BaseException | None = None) -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, or with this exception. Only the main thread can handle signals."""

    def stop(*_: object) -> None:
        raise interrupt or KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def has_one_thread() -> bool:
    """Whether this process can be forked without harm. False where that is not known: only Linux counts the threads of libraries."""
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def start_as_worker() -> None:
    """In a process of a pool: leave Ctrl-C to the process that started this one, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of the other process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Processes spawned in this block do not import the running script. Without a main guard, each would run it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
