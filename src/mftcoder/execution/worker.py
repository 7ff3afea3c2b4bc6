"""One slot of a pool: receives programs, runs each in its sandbox, sends results back.

Started by pool.py as `python -m mftcoder.execution.worker FD SETTINGS`; ends when the pool closes the channel. It is trusted: it
holds the tests and runs no untrusted code itself.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from mftcoder.execution.bounds import bounded, resident_mb
from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.compiled.judging import judge, recorded
from mftcoder.execution.isolation import kernel
from mftcoder.execution.isolation.scratch import remove_tree, remove_unlocked
from mftcoder.execution.languages import Runner, runner
from mftcoder.execution.python.run import preload_for, run_python
from mftcoder.execution.python.zygote_handle import SlotSettings, ZygoteHandle, ZygoteLostError, unused_uid
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain

_OWN_SECONDS = 2.0  # CPU time of a worker for one program, beyond the program's own limit
_MIN_FREE_MB, _MIN_FREE_FILES = 64, 256  # what a program may need in the folder for temporary files
_MAX_RESIDENT_MB = 512  # a worker with more resident memory is replaced


class Slot:
    """The zygotes of one slot: one per set of preloaded modules, one for commands, one per language's tests. Started on first use.

    Commands have a zygote of their own, because it writes source files: a Python candidate is a copy of its zygote and could read
    them from its memory.
    """

    def __init__(self, settings: SlotSettings, toolchains: Mapping[str, Toolchain]):
        self.settings, self.toolchains = settings, toolchains
        self.runners: dict[str, Runner] = {}
        self.zygotes: dict[tuple[str, ...], ZygoteHandle] = {}

    def zygote(self, preload: tuple[str, ...] = ()) -> ZygoteHandle:
        """The running zygote that has imported these modules."""
        return self._started(preload, preload)

    def commands(self) -> ZygoteHandle:
        """The running zygote for compilers and compiled programs."""
        return self._started(("commands",), ())

    def _started(self, key: tuple[str, ...], preload: tuple[str, ...]) -> ZygoteHandle:
        if key not in self.zygotes:
            self.zygotes[key] = ZygoteHandle(self.settings, preload)
        return self.zygotes[key]

    def run(self, program: Program, limits: Limits) -> ExecutionResult:
        """Run one program. A failure of the sandbox is `sandbox_error`, and the next program gets new zygotes."""
        try:
            with bounded(limits.seconds + _OWN_SECONDS, limits.memory_mb):
                result = self._run(program, limits)
            if result.status != "passed" and self.settings.level == "process" and _is_full(self.settings.scratch):
                return ExecutionResult("sandbox_error", stderr=f"no space left in {self.settings.scratch}")
            return result
        except Exception as error:  # any exception is our failure: end the zygotes, and the pool tries again
            self.close()
            return ExecutionResult("sandbox_error", stderr=f"{type(error).__name__}: {error}")

    def _run(self, program: Program, limits: Limits) -> ExecutionResult:
        if program.language == "python":
            return run_python(program, limits, self.zygote(preload_for(program)))
        if program.language not in self.toolchains:
            return ExecutionResult("sandbox_error", stderr=f"no toolchain for {program.language} was prepared")
        if "warnings" in program.files:
            return self.runner(program.language).warnings(program, limits, self.commands())
        if "tests" not in program.files:
            return self.runner(program.language).compile(program.files["candidate"], limits, self.commands())
        with self.runner(program.language).sides(program, limits, self.commands()) as sides:
            if isinstance(sides, ExecutionResult):
                return sides
            return (recorded if "record" in program.files else judge)(sides, limits)

    def runner(self, name: str) -> Runner:
        if name not in self.runners:
            self.runners[name] = runner(self.toolchains[name], ZygoteHandle(self.settings.for_tests(name)))
        return self.runners[name]

    def close(self) -> None:
        for started in self.runners.values():
            started.close()
        self.runners.clear()
        for zygote in self.zygotes.values():
            zygote.close()
        self.zygotes.clear()


def _is_full(folder: str) -> bool:
    """True if an empty scratch folder's file system is nearly full: the program may have failed because of that."""
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < _MIN_FREE_MB << 20 or (free.f_files > 0 and free.f_favail < _MIN_FREE_FILES)


class _Termination:
    """Ends this process on SIGTERM through `sys.exit`, and remembers that the signal came."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        sys.exit()


def _serve(channel: Channel, slot: Slot, termination: _Termination) -> None:
    while True:
        message: dict[str, Any] = channel.receive()
        program = Program(message["language"], message["files"])
        result = slot.run(program, Limits(**message["limits"]))
        if termination.requested:  # the signal may have cut the run short, so the result is no verdict
            return
        needs_replacement = resident_mb() > _MAX_RESIDENT_MB
        channel.send({"key": message["key"], "result": result.as_record(), "needs_replacement": needs_replacement})


def main() -> None:
    """Serve until the pool closes the channel or dies; leave no file behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool handles Ctrl-C and closes the channel
    termination = _Termination()
    if kernel.is_supported():
        kernel.die_with_parent(signal.SIGTERM)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    arguments = json.loads(sys.argv[2])
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)  # tests may print
    toolchains = {name: Toolchain(**fields) for name, fields in arguments["toolchains"].items()}
    uid = unused_uid(arguments["level"], toolchains.values())
    slot = Slot(SlotSettings(arguments["level"], arguments["scratch"], uid, tuple(arguments["readable"])), toolchains)
    try:
        channel.send({"covers": slot.zygote().covers})
        _serve(channel, slot, termination)
    except ZygoteLostError as lost:
        channel.send({"problem": str(lost)})
    except ChannelClosedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        slot.close()
        _remove_folders(Path(slot.settings.scratch))


def _remove_folders(scratch: Path) -> None:
    """Remove this slot's folders, and the pool's folder if the pool has died."""
    for folder in (scratch, *scratch.parent.glob(f"{scratch.name}-*")):
        with contextlib.suppress(OSError):
            remove_tree(folder)
    with contextlib.suppress(OSError):
        remove_unlocked(scratch.parent)


if __name__ == "__main__":
    main()
