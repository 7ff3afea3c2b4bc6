"""JavaScript: a trusted Node process runs the tests, the candidate's Node process answers, this module carries between them.

Goes in: a program with the roles `candidate`, `helpers`, `tests` and `entry_point`. Comes out: an ExecutionResult. As in Python,
a pass means that the tests ran to their end in the judge, and only plain data crosses. A failing `console.assert`, which on
its own only prints, is a failure here.
"""

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from mftcoder.execution.channel import pair
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program, Status
from mftcoder.execution.toolchains import Toolchain, output_of
from mftcoder.execution.zygote_handle import ENVIRONMENT, ZygoteHandle

_ANSWER_LIMIT = 8 << 20
_HUNG_UP = "the program ended before its tests did"
_SOURCES = Path(str(files("mftcoder.execution")))


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Nothing to build: Node needs no flag to start as fast as it can."""
    return Toolchain(
        "js",
        tools,
        readable=(str(Path(tools["node"]).resolve()),),
        version=output_of(tools["node"], "--version").strip(),
    )


class JavaScriptJudge:
    """A Node process that runs one program's tests after another, each in a fresh context."""

    def __init__(self, toolchain: Toolchain):
        here, there = pair()
        with there:
            self.process = subprocess.Popen(
                [toolchain.tools["node"], str(_SOURCES / "judge.js")],
                stdin=there.fileno(),
                stdout=there.fileno(),
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
            )
        self.lines = _Lines(here)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.lines.socket.close()


class _Lines:
    """A socket that carries a JSON value a line. Raises TimeoutError past `deadline`, EOFError when the other side has gone."""

    def __init__(self, end: socket.socket):
        self.socket, self.buffer, self.deadline = end, bytearray(), 0.0

    def send(self, line: bytes) -> None:
        self.socket.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            self.socket.sendall(line)
        except ConnectionError as error:
            raise EOFError from error

    def receive(self) -> bytes:
        while b"\n" not in self.buffer[-1 << 16 :]:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError as error:
                raise EOFError from error
            if not data or len(self.buffer) > _ANSWER_LIMIT:
                raise EOFError
            self.buffer += data
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer = bytearray(rest)
        return line + b"\n"


def run_javascript(
    program: Program, limits: Limits, zygote: ZygoteHandle, judge: JavaScriptJudge, toolchain: Toolchain
) -> ExecutionResult:
    """Run the tests against the candidate."""
    zygote.write({"candidate.js": (_SOURCES / "candidate.js").read_text()}, keep=())
    here, there = pair()
    silence = os.open(os.devnull, os.O_RDWR)
    with here:
        with there:
            command = (toolchain.tools["node"], f"--max-old-space-size={limits.memory_mb}", "candidate.js")
            descriptors = [silence, silence, silence, there.fileno()]
            space = limits.memory_mb + 4096
            zygote.execute(
                command, descriptors, limits, seconds=limits.seconds, address_mb=space, environment={}, may_fork=False
            )
        os.close(silence)
        started = time.monotonic()
        candidate = _Lines(here)
        candidate.deadline = judge.lines.deadline = started + limits.wall_seconds
        status, detail = _judged(program, candidate, judge)
        seconds = time.monotonic() - started
    end = zygote.end(patience=1.0 if detail == _HUNG_UP else 0.0)
    if status == "failed" and end.memory_killed:
        status = "out_of_memory"
    elif status == "failed" and end.is_out_of_time(limits.seconds):
        status = "timeout"
    return ExecutionResult(status, end.exit_code if end.ended else None, "", detail, seconds)


def _judged(program: Program, candidate: _Lines, judge: JavaScriptJudge) -> tuple[Status, str]:
    """Carry questions and answers until the judge has a verdict. `JudgeLostError` if the judge itself has gone."""
    try:
        candidate.send(json.dumps(program.files["candidate"]).encode() + b"\n")
    except (EOFError, TimeoutError):
        return "failed", _HUNG_UP
    judge.lines.send(
        json.dumps({role: program.files[role] for role in ("helpers", "tests", "entry_point")}).encode() + b"\n"
    )
    try:
        answer = candidate.receive()  # how loading the program went
        while True:
            judge.lines.send(answer)
            verdict: dict[str, Any] = json.loads(judge.lines.receive())
            if "verdict" in verdict:
                return ("passed" if verdict["verdict"] == "passed" else "failed"), str(verdict.get("detail", ""))[:500]
            candidate.send(json.dumps(verdict["ask"]).encode() + b"\n")
            answer = candidate.receive()
    except TimeoutError:
        judge.close()
        return "timeout", "no verdict in time"
    except EOFError:
        judge.close()
        return "failed", _HUNG_UP
