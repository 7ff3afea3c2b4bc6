"""The worker's end of a zygote: start it, ask it for runs, learn how they ended."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mftcoder
from mftcoder.execution.channel import Channel, ChannelClosedError, pair
from mftcoder.execution.isolation import cgroups, kernel
from mftcoder.execution.sandbox import Limits
from mftcoder.execution.toolchains import Toolchain

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # so that a verdict does not depend on the order of a set
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

# The package may have been found through PYTHONPATH, which the clean environment lacks.
_START = "import sys; sys.path.append(sys.argv.pop(1)); from mftcoder.execution.python.zygote import main; main()"

_USERS = 20_000  # user ids for answers, and as many for tests


class ZygoteLostError(Exception):
    """The zygote did not start, or ended: a failure of the sandbox, never of the program."""


@dataclass(frozen=True)
class SlotSettings:
    """One slot of a pool: the level, the folder, the user and the readable paths of its programs."""

    level: str
    scratch: str
    uid: int | None
    readable: tuple[str, ...]

    def for_tests(self, language: str) -> "SlotSettings":
        """The same settings with a folder and a user of their own, so that answers cannot reach the tests."""
        folder = Path(f"{self.scratch}-{language}-tests")
        folder.mkdir(mode=0o700, exist_ok=True)
        return replace(self, scratch=str(folder), uid=None if self.uid is None else self.uid + _USERS)


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: by itself (`ended`), or because we killed it."""

    ended: bool = False
    exit_code: int | None = None
    cpu_seconds: float = 0.0
    memory_killed: bool = False

    def is_out_of_time(self, seconds: float) -> bool:
        """True if the kernel ended it for its CPU time, or was about to when we looked."""
        if self.ended and self.exit_code == -signal.SIGXCPU:
            return True
        killed = not self.ended or self.exit_code == -signal.SIGKILL
        # The kernel compares the limit with whole ticks but reports the time really used: far less on a busy CPU.
        return killed and self.cpu_seconds >= 0.3 * seconds


class ZygoteHandle:
    """A running zygote."""

    def __init__(self, settings: SlotSettings, preload: Sequence[str] = ()):
        ours, theirs = pair()
        arguments = {**vars(settings), "preload": list(preload)}
        package = str(Path(mftcoder.__file__).parents[1])
        command = [sys.executable, "-P", "-s", "-B", "-W", "ignore", "-c", _START, package]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(arguments)],
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self.channel = Channel(ours)
        greeting = self._reply()
        self.covers: tuple[str, ...] = tuple(greeting["covers"])
        self._groups = [Path(folder) for folder in greeting["groups"]]

    def fork(self, end: socket.socket, limits: Limits) -> None:
        """Start a Python candidate that talks on `end`; closes `end` in this process."""
        with end:
            self._ask({"operation": "fork", "limits": _wire_limits(limits)}, [end.fileno()])

    def execute(
        self,
        command: Sequence[str],
        descriptors: Sequence[int],
        limits: Limits,
        *,
        seconds: float,
        address_mb: int | None = None,
        environment: Mapping[str, str],
        may_fork: bool,
    ) -> None:
        """Start a command in the scratch folder; `descriptors` become its 0, 1, 2 and so on."""
        wire = _wire_limits(limits, seconds=seconds, address_mb=address_mb)
        request = {"operation": "execute", "command": list(command), "limits": wire, "may_fork": may_fork}
        self._ask({**request, "environment": {**ENVIRONMENT, **environment}}, descriptors)

    def write(self, files: Mapping[str, str], *, keep: Sequence[str]) -> None:
        """Remove everything in the scratch folder but the top-level names in `keep`, then write these files."""
        self._ask({"operation": "files", "files": dict(files), "keep": list(keep)})

    def end(self, *, clear: bool = True, patience: float = 0.0) -> RunEnd:
        """Kill what still runs after `patience` seconds. Returns how the run ended."""
        return RunEnd(**self._ask({"operation": "end", "clear": clear, "patience": patience}))

    def close(self) -> None:
        """Close the channel, upon which the zygote kills its program and ends."""
        self.channel.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for folder in self._groups:
            cgroups.remove(folder)

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        try:
            self.channel.send(request, descriptors)
        except ChannelClosedError as error:
            raise ZygoteLostError("the zygote ended") from error
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        try:
            reply = self.channel.receive()
        except ChannelClosedError as error:
            code = self.process.poll()
            raise ZygoteLostError(f"the zygote ended (exit code {code})") from error
        if "problem" in reply:
            raise ZygoteLostError(reply["problem"])
        return reply


def _wire_limits(limits: Limits, *, seconds: float | None = None, address_mb: int | None = None) -> dict[str, Any]:
    return {
        "seconds": seconds or limits.seconds,
        "memory_mb": limits.memory_mb,
        "address_mb": address_mb or limits.memory_mb + 1024,
        "file_mb": limits.file_mb,
        "processes": limits.processes,
    }


def unused_uid(level: str, toolchains: Iterable[Toolchain] = ()) -> int | None:
    """A user id for this slot's programs, below 65,536 and different for each running worker; None: the caller's.

    None if this process may not switch users, or if another user could not read the interpreter or a toolchain (one under /root, say;
    at level `namespaces` that does not matter). Programs then keep the caller's id, without its capabilities.
    """
    needed = [sys.prefix, sys.base_prefix, *(path for toolchain in toolchains for path in toolchain.readable)]
    reachable = level == "namespaces" or all(_open_to_others(Path(path)) for path in needed)
    return 20_000 + os.getpid() % _USERS if reachable and kernel.may_switch_users() else None


def _open_to_others(folder: Path) -> bool:
    return not folder.exists() or all(parent.stat().st_mode & stat.S_IXOTH for parent in (folder, *folder.parents))
