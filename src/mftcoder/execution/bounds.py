"""Limits for trusted code while it handles what an answer has sent: a bound on its processor time and on its memory.

Goes in: seconds and megabytes, both beyond what the process has used so far. Comes out: a context. Too much memory is a MemoryError.
Too much of the processor ends the whole process with SIGPROF, for a step written in C (a set of numbers with equal hashes, a parser)
stops for nothing else; whoever started the process reads that from its exit code.
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_TIME = -signal.SIGPROF
"""Exit code of a process that `bounded` has ended."""


@contextmanager
def bounded(seconds: float, memory_mb: int) -> Iterator[None]:
    """Bound this process; children that are started meanwhile inherit the bound on memory and may raise it again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _held() + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whatever started this process may have left it ignored
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def unbounded_memory() -> None:
    """Raise this process's bound on memory to what it may have at most: for a child that was started inside of `bounded`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _held() -> int:
    """Bytes of data that this process has now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0
