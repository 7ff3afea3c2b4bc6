"""One slot of a pool: takes programs from the pool, runs each in its sandbox, sends results back.

Started by pool.py as `python -m mftcoder.execution.worker FD SETTINGS`. Goes in: programs as messages. Comes out: results as
messages. It is trusted and holds the tests; it runs nothing foreign itself. Ends when the pool hangs up.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from mftcoder.execution.bounds import bounded
from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.compiled.judging import judged
from mftcoder.execution.isolation import kernel
from mftcoder.execution.isolation.scratch import remove_tree, remove_unlocked
from mftcoder.execution.languages import Runner, runner
from mftcoder.execution.python.run import preload_for, run_python
from mftcoder.execution.python.zygote_handle import SlotSettings, ZygoteHandle, ZygoteLostError, unused_uid
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain

_OWN_SECONDS = 2.0  # of the processor, that a worker may use for a program beyond what the program may use
_ROOM_MB, _ROOM_FILES = 64, 256  # what a program may need in the folder for temporary files
_WORN_MB = 512  # memory that a worker has not given back, for which the pool puts a fresh one in its place


class Slot:
    """The zygotes of one slot, started when first needed: one for each set of preloaded modules, one for commands, one for each
    language's tests.

    Commands have their own because it writes the files of compilers: what lies in its memory would be in a Python candidate's, which is
    a copy of its zygote.
    """

    def __init__(self, settings: SlotSettings, toolchains: Mapping[str, Toolchain]):
        self.settings, self.toolchains = settings, toolchains
        self.runners: dict[str, Runner] = {}
        self.zygotes: dict[tuple[str, ...], ZygoteHandle] = {}

    def zygote(self, preload: tuple[str, ...] = ()) -> ZygoteHandle:
        """The running zygote that holds these modules."""
        return self._started(preload, preload)

    def commands(self) -> ZygoteHandle:
        """The running zygote for compilers and compiled programs."""
        return self._started(("commands",), ())

    def _started(self, key: tuple[str, ...], preload: tuple[str, ...]) -> ZygoteHandle:
        if key not in self.zygotes:
            self.zygotes[key] = ZygoteHandle(self.settings, preload)
        return self.zygotes[key]

    def run(self, program: Program, limits: Limits) -> ExecutionResult:
        """Run one program; a failure of the sandbox is its own status, and the next program gets a new zygote."""
        try:
            with bounded(limits.seconds + _OWN_SECONDS, limits.memory_mb):
                result = self._run(program, limits)
            if result.status != "passed" and self.settings.level == "process" and _is_full(self.settings.scratch):
                return ExecutionResult("sandbox_error", stderr=f"no room in {self.settings.scratch}")
            return result
        except Exception as error:  # whatever it is, it is ours: the slot starts afresh and the pool tries again
            self.close()
            return ExecutionResult("sandbox_error", stderr=f"{type(error).__name__}: {error}")

    def _run(self, program: Program, limits: Limits) -> ExecutionResult:
        if program.language == "python":
            return run_python(program, limits, self.zygote(preload_for(program)))
        if program.language not in self.toolchains:
            return ExecutionResult("sandbox_error", stderr=f"no toolchain for {program.language} was prepared")
        with self.runner(program.language).sides(program, limits, self.commands()) as sides:
            return sides if isinstance(sides, ExecutionResult) else judged(sides, limits)

    def runner(self, name: str) -> Runner:
        """What runs programs in this language."""
        if name not in self.runners:
            self.runners[name] = runner(self.toolchains[name], ZygoteHandle(self.settings.for_tests(name)))
        return self.runners[name]

    def close(self) -> None:
        """End all zygotes."""
        for judge in self.runners.values():
            judge.close()
        self.runners.clear()
        for zygote in self.zygotes.values():
            zygote.close()
        self.zygotes.clear()


def _is_full(folder: str) -> bool:
    """True if the file system of an empty scratch folder has hardly any room: what failed may have failed for that."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < _ROOM_MB << 20 or (room.f_files > 0 and room.f_favail < _ROOM_FILES)


def _serve(channel: Channel, slot: Slot, stop: list[int]) -> None:
    while True:
        message: dict[str, Any] = channel.receive()
        program = Program(message["language"], message["files"])
        result = slot.run(program, Limits(**message["limits"]))
        if stop:  # the signal may have ended the run: that is no verdict
            return
        channel.send({"key": message["key"], "result": result.as_record(), "worn": _resident_mb() > _WORN_MB})


def _resident_mb() -> float:
    """Memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)
    except OSError:
        return 0.0


def main() -> None:
    """Serve until the pool hangs up or dies, and leave no file behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's to handle; it hangs up
    stop: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        stop.append(number)
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    if kernel.is_supported():
        kernel.die_with_parent(signal.SIGTERM)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    arguments = json.loads(sys.argv[2])
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # tests may print
    toolchains = {name: Toolchain(**fields) for name, fields in arguments["toolchains"].items()}
    uid = unused_uid(arguments["level"], toolchains.values())
    slot = Slot(SlotSettings(arguments["level"], arguments["scratch"], uid, tuple(arguments["readable"])), toolchains)
    try:
        channel.send({"covers": slot.zygote().covers})
        _serve(channel, slot, stop)
    except ZygoteLostError as lost:
        channel.send({"problem": str(lost)})
    except ChannelClosedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        slot.close()
        _remove_folders(Path(slot.settings.scratch))


def _remove_folders(scratch: Path) -> None:
    """Remove this slot's folders; the pool's with all that is left there, where the pool has died."""
    for folder in (scratch, *scratch.parent.glob(f"{scratch.name}-*")):
        with contextlib.suppress(OSError):
            remove_tree(folder)
    with contextlib.suppress(OSError):
        remove_unlocked(scratch.parent)


if __name__ == "__main__":
    main()
