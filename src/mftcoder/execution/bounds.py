"""Limits for trusted code while it handles what an answer has sent: a bound on its CPU time and on its memory.

Both bounds come on top of what the process has used so far. Too much memory raises MemoryError. Too much CPU time ends the whole
process with SIGPROF, because nothing else stops a step written in C (a parser, a set of numbers with equal hashes). The parent
process sees that in the exit code.
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_TIME = -signal.SIGPROF
"""Exit code of a process that `bounded` ended."""


@contextmanager
def bounded(seconds: float, memory_mb: int) -> Iterator[None]:
    """Bound this process. Children that it starts meanwhile inherit the bound on memory, and may raise it again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _statm(_DATA) + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent process may have left it ignored
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def unbounded_memory() -> None:
    """Lift the bound on memory as far as the system allows: for a child that was started inside `bounded`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def resident_mb() -> float:
    """Resident memory of this process; 0 where the system does not report it."""
    return _statm(_RESIDENT) / (1 << 20)


_RESIDENT, _DATA = 1, 5  # fields of /proc/self/statm, in pages


def _statm(field: int) -> int:
    """Bytes of this process's memory; 0 where the system does not report it."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[field]) * resource.getpagesize()
    except OSError:
        return 0
