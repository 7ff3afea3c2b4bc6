"""The fork server of one slot: a small process with warm imports, which forks one isolated program after another.

A worker asks it to fork a Python candidate, execute a command, write files or end the run. It never sees a test, and a candidate's
source goes straight to the fork, so a program finds neither in its process's memory. It ends when its worker ends.
"""

import contextlib
import gc
import io
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mftcoder.execution.bounds import unbounded_memory
from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.isolation import kernel
from mftcoder.execution.isolation.confinement import Confinement
from mftcoder.execution.python import candidate

# What most answers import. More modules would make each fork slower than the imports that they save.
_WARM_MODULES = ("math", "re", "typing", "collections", "itertools", "functools", "heapq", "string", "copy")


@dataclass
class Zygote:
    """The server's state: one run at a time."""

    control: Channel
    confinement: Confinement
    child: int | None = None

    def __post_init__(self) -> None:
        # A child reports here why it could not be confined. It closes its end before it runs untrusted code.
        self.problems, self.problems_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Serve requests until the worker closes the channel."""
        operations = {"fork": self._fork, "execute": self._execute, "files": self._files, "end": self._end}
        while True:
            try:
                request, descriptors = self.control.receive_with_descriptors()
            except ChannelClosedError:
                self._end({}, [])
                return
            reply: dict[str, Any]
            try:
                reply = operations[request["operation"]](request, descriptors)
            except OSError as error:
                reply = {"problem": str(error)}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self.control.send(reply)

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Start a Python candidate, which talks to its judge on the one descriptor."""
        self.confinement.ready(request["limits"])
        self.child = kernel.fork_into(self.confinement.clone_flags)
        if self.child == 0:
            self._finish(lambda: self._become_candidate(request, descriptors[0]))
        return {"pid": self.child}

    def _become_candidate(self, request: dict[str, Any], descriptor: int) -> None:
        self.control.close()
        devnull = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        self.confinement.enter()
        _close_descriptors_except([descriptor])
        sys.stdout = sys.stderr = _NullStream()
        candidate.serve(Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)))

    def _execute(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Start a command; the descriptors become its 0, 1, 2, 3 and so on."""
        self.confinement.ready(request["limits"])
        self.child = kernel.fork_into(self.confinement.clone_flags)
        if self.child == 0:
            self._finish(lambda: self._become_command(request, descriptors))
        return {"pid": self.child}

    def _become_command(self, request: dict[str, Any], descriptors: list[int]) -> None:
        self.confinement.enter(may_fork=request["may_fork"])
        self.problems_writer = os.dup2(self.problems_writer, 120, inheritable=False)
        high = [os.dup2(number, 100 + index, inheritable=False) for index, number in enumerate(descriptors)]
        _close_descriptors_except([*high, self.problems_writer])
        for index, number in enumerate(high):
            os.dup2(number, index)
        home = self.confinement.scratch.path
        os.execve(request["command"][0], request["command"], {**request["environment"], "HOME": home, "TMPDIR": home})

    def _files(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Remove everything in the scratch folder but the names in `keep`, then write these files."""
        self.confinement.scratch.clear(request["keep"])
        self.confinement.scratch.write(request["files"])
        return {}

    def _end(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Kill the run and all that it started, after `patience` seconds to end by itself; how it ended."""
        if self.child is None:
            return {}
        ended = self._has_ended(request.get("patience", 0.0))
        if not ended:
            os.kill(self.child, signal.SIGKILL)
        _pid, status, usage = os.wait4(self.child, 0)
        self.child = None
        self.confinement.kill_leftovers()
        if request.get("clear", True):
            self.confinement.scratch.clear()
        if problem := self._problem():
            return {"problem": problem}
        return {
            "ended": ended,
            "exit_code": os.waitstatus_to_exitcode(status),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "memory_killed": status == signal.SIGKILL and ended and self.confinement.memory_killed(),
        }

    def _has_ended(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while True:
            if os.waitid(os.P_PID, self.child or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.0005)

    def _finish(self, action: Callable[[], None]) -> None:
        """Run `action` in a new child, then end the child without the parent's clean-up."""
        try:
            action()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(self.problems_writer, f"{type(error).__name__}: {error}".encode()[:500])
        finally:
            os._exit(0)

    def _problem(self) -> str:
        try:
            return os.read(self.problems, 1000).decode(errors="replace")
        except BlockingIOError:
            return ""


class _NullStream(io.TextIOBase):
    """A text stream that discards what is written."""

    def write(self, text: str) -> int:
        return len(text)


def _close_descriptors_except(kept: list[int]) -> None:
    """Close every descriptor above 2 that is not in `kept`."""
    start = 3
    for number in sorted(number for number in kept if number > 2):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16))


def main() -> None:
    """Serve on the descriptor in the first argument; the second one is the JSON of `Confinement.prepare` and `preload`."""
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    unbounded_memory()
    if kernel.is_supported():
        kernel.die_with_parent()
    settings = json.loads(sys.argv[2])
    warm = (*_WARM_MODULES, *settings.pop("preload"))
    for module in warm:
        __import__(module)
    try:
        confinement = Confinement.prepare(**settings)
    except OSError as error:
        control.send({"problem": str(error)})
        return
    os.environ["HOME"] = os.environ["TMPDIR"] = confinement.scratch.path
    gc.collect()
    gc.freeze()
    gc.disable()
    groups = [str(folder) for folder in confinement.group.folders] if confinement.group else []
    control.send({"covers": confinement.covers, "groups": groups})
    Zygote(control, confinement).serve()
