"""One slot of a pool: takes programs from the pool, runs each in its sandbox, sends results back.

Started by pool.py as `python -m mftcoder.execution.worker FD SETTINGS`. Goes in: programs as messages. Comes out: results as
messages. It is trusted and holds the tests; it runs nothing foreign itself. Ends when the pool hangs up.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

from mftcoder.execution import kernel
from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.python_run import preload_for, run_python
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.zygote_handle import SlotSettings, ZygoteHandle, ZygoteLostError, unused_uid


class Slot:
    """The zygotes of one slot, started when first needed: one for each set of preloaded modules."""

    def __init__(self, settings: SlotSettings):
        self.settings = settings
        self.zygotes: dict[tuple[str, ...], ZygoteHandle] = {}

    def zygote(self, preload: tuple[str, ...] = ()) -> ZygoteHandle:
        """The running zygote that holds these modules."""
        if preload not in self.zygotes:
            self.zygotes[preload] = ZygoteHandle(self.settings, preload)
        return self.zygotes[preload]

    def run(self, program: Program, limits: Limits) -> ExecutionResult:
        """Run one program; a failure of the sandbox is its own status, and the next program gets a new zygote."""
        preload = preload_for(program)
        try:
            return run_python(program, limits, self.zygote(preload))
        except ZygoteLostError as lost:
            self.close()
            return ExecutionResult("sandbox_error", stderr=str(lost))

    def close(self) -> None:
        """End all zygotes."""
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
    settings = SlotSettings(arguments["level"], arguments["scratch"], unused_uid(), tuple(arguments["readable"]))
    slot = Slot(settings)
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
