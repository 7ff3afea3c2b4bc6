"""One slot of a pool: takes programs from the pool, runs each in its sandbox, sends results back.

Started by pool.py as `python -m mftcoder.execution.worker FD SETTINGS`. Goes in: programs as messages. Comes out: results as
messages. It is trusted and holds the tests; it runs nothing foreign itself. Ends when the pool hangs up.
"""

import importlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from mftcoder.execution import kernel
from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.command_run import run_plan
from mftcoder.execution.javascript import JavaScriptJudge, run_javascript
from mftcoder.execution.languages import language
from mftcoder.execution.python_run import preload_for, run_python
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain
from mftcoder.execution.zygote_handle import SlotSettings, ZygoteHandle, ZygoteLostError, unused_uid


class Slot:
    """The zygotes of one slot, started when first needed: one for each set of preloaded modules."""

    def __init__(self, settings: SlotSettings, toolchains: Mapping[str, Toolchain]):
        self.settings, self.toolchains = settings, toolchains
        self.judge: JavaScriptJudge | None = None
        self.zygotes: dict[tuple[str, ...], ZygoteHandle] = {}

    def zygote(self, preload: tuple[str, ...] = ()) -> ZygoteHandle:
        """The running zygote that holds these modules."""
        if preload not in self.zygotes:
            self.zygotes[preload] = ZygoteHandle(self.settings, preload)
        return self.zygotes[preload]

    def run(self, program: Program, limits: Limits) -> ExecutionResult:
        """Run one program; a failure of the sandbox is its own status, and the next program gets a new zygote."""
        try:
            return self._run(program, limits)
        except Exception as error:  # whatever it is, it is ours: the slot starts afresh and the pool tries again
            self.close()
            return ExecutionResult("sandbox_error", stderr=f"{type(error).__name__}: {error}")

    def _run(self, program: Program, limits: Limits) -> ExecutionResult:
        if program.language == "python":
            return run_python(program, limits, self.zygote(preload_for(program)))
        if program.language not in self.toolchains:
            return ExecutionResult("sandbox_error", stderr=f"no toolchain for {program.language} was prepared")
        toolchain = self.toolchains[program.language]
        if program.language == "js":
            return run_javascript(program, limits, self.zygote(), self._javascript_judge(toolchain), toolchain)
        module = importlib.import_module(str(language(program.language).module))
        return run_plan(module.plan(program, secrets.token_hex(16), toolchain), limits, self.zygote())

    def _javascript_judge(self, toolchain: Toolchain) -> JavaScriptJudge:
        if self.judge is None or self.judge.process.poll() is not None:
            self.judge = JavaScriptJudge(toolchain)
        return self.judge

    def close(self) -> None:
        """End all zygotes, and the judge."""
        if self.judge:
            self.judge.close()
            self.judge = None
        for zygote in self.zygotes.values():
            zygote.close()
        self.zygotes.clear()


def _serve(channel: Channel, slot: Slot) -> None:
    while True:
        message: dict[str, Any] = channel.receive()
        program = Program(message["language"], message["files"])
        result = slot.run(program, Limits(**message["limits"]))
        channel.send({"key": message["key"], "result": result.as_record()})


def main() -> None:
    """Serve until the pool hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's to handle; it hangs up
    if kernel.is_supported():
        kernel.die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    arguments = json.loads(sys.argv[2])
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # tests may print
    settings = SlotSettings(
        arguments["level"], arguments["scratch"], unused_uid(arguments["level"]), tuple(arguments["readable"])
    )
    slot = Slot(settings, {name: Toolchain(**fields) for name, fields in arguments["toolchains"].items()})
    try:
        channel.send({"covers": slot.zygote().covers})
        _serve(channel, slot)
    except ZygoteLostError as lost:
        channel.send({"problem": str(lost)})
    except ChannelClosedError:
        pass
    finally:
        slot.close()


if __name__ == "__main__":
    main()
