"""The processes that this one starts: they end when it does, and they do not run the user's script again.

A leaf that needs the standard library only. What the processes do is the callers' business.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_PARENT = "MFTCODER_PARENT"
_PR_SET_PDEATHSIG = 1


def following_environment() -> dict[str, str]:
    """The environment of a `mft` command that must not outlive this process, even if that is killed."""
    return {**os.environ, _PARENT: str(os.getpid())}


def follow_parent() -> None:
    """In a command with that environment: get SIGTERM when the parent ends, so that a run saves and stops. Linux only."""
    parent = os.environ.pop(_PARENT, None)  # the processes that this one starts have another parent
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the line above
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Processes spawned in this block do not import the running script: without a main guard it would start all over in each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
