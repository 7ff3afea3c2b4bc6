"""Compilers in the sandbox, the programs they make, and the two kinds of process that a run is made of: commands and servers.

Goes in: builds and plans. Comes out: programs as files in memory that nobody can change, and sides for judging.py. Compilers are
confined like programs: they read hostile input (`#include "/etc/shadow"`), and may only start processes in addition. Tests are
compiled once for all answers to them, and run in a sandbox of their own.
"""

import fcntl
import hashlib
import json
import os
import selectors
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from mftcoder.errors import ExecutionError
from mftcoder.execution.channel import pair
from mftcoder.execution.compiled.judging import NO_CHANGE, Sides
from mftcoder.execution.compiled.plan import CHANGE, MEMORY_MB, PROGRAM, WIRE, Build, Plan
from mftcoder.execution.compiled.relay import EndedError, LateError, Peer
from mftcoder.execution.python.zygote_handle import RunEnd, ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain

_COMPILER_LIMITS = Limits(memory_mb=3072, file_mb=256)
_COMPILER_ADDRESS_MB = 16384
_PROGRAM_BYTES = 64 << 20
_KEPT_TESTS = 16  # programs of tests that a slot keeps


class Compiled:
    """A program that was built, as a sealed file in memory."""

    def __init__(self, program: bytes):
        self.descriptor = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(self.descriptor), "wb") as file:
            file.write(program)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def close(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Command:
    """How a process of a run is started."""

    words: Sequence[str]
    memory_mb: int  # what the program may use; stands for MEMORY_MB
    seconds: float  # of the processor
    overhead_mb: int = 0  # memory a runtime needs beside what its program may use
    address_mb: int = 1024  # address space beyond the memory limit; some runtimes reserve far more than they use
    kept_kb: int = 0  # of each output
    talks_on_stdio: bool = False  # else on descriptor WIRE

    def start(
        self, zygote: ZygoteHandle, limits: Limits, deadline: float, change: int, program: Compiled | None = None
    ) -> Peer:
        """Start it in an empty folder."""
        stand_ins = {PROGRAM: f"/proc/self/fd/{WIRE + 1}", CHANGE: str(change)}
        words = [stand_ins.get(word, word).replace(MEMORY_MB, str(self.memory_mb)) for word in self.words]
        zygote.write({}, keep=())
        here, there = pair()
        out, err = os.pipe(), os.pipe()
        peer = Peer(here, (out[0], err[0]), self.kept_kb << 10, deadline)
        silence = os.open(os.devnull, os.O_RDWR)
        try:
            with there:
                wire = there.fileno()
                theirs = [wire, wire, err[1]] if self.talks_on_stdio else [silence, out[1], err[1], wire]
                memory_mb = self.memory_mb + self.overhead_mb
                zygote.execute(
                    words,
                    theirs + ([program.descriptor] if program else []),
                    replace(limits, memory_mb=memory_mb),
                    seconds=self.seconds,
                    address_mb=memory_mb + self.address_mb,
                    environment={},
                    may_fork=False,
                )
        finally:
            for descriptor in (silence, out[1], err[1]):
                os.close(descriptor)
        return peer


@dataclass(frozen=True)
class CommandSide:
    """A side of a run that is a command, started anew for every run."""

    command: Command
    zygote: ZygoteHandle
    limits: Limits
    program: Compiled | None = None  # what PROGRAM in the command stands for
    first: tuple[bytes, bytes] | None = None  # a frame that goes before all others

    @contextmanager
    def start(self, change: int, deadline: float) -> Iterator[Peer]:
        """Start it; tests are told in their command what to change."""
        with closing(self.command.start(self.zygote, self.limits, deadline, change, self.program)) as peer:
            if self.first:
                peer.offer(*self.first)
            yield peer

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """Kill what is left of it."""
        return self.zygote.end(patience=patience)


class Server:
    """A process of the tests' sandbox that serves one program's tests after another's."""

    def __init__(self, command: Command, zygote: ZygoteHandle):
        self.command, self.zygote = command, zygote
        self._peer: Peer | None = None

    def peer(self, deadline: float) -> Peer:
        """The running server, started if there is none."""
        if self._peer is None:
            self._peer = self.command.start(self.zygote, Limits(), deadline, NO_CHANGE)
        self._peer.deadline = deadline
        return self._peer

    def request(self, kind: bytes, body: bytes, deadline: float) -> tuple[bytes, bytes]:
        """One frame there, one back. A server that is late or has gone is ended, and the error raised again."""
        try:
            peer = self.peer(deadline)
            peer.send(kind, body)
            return peer.receive()
        except (EndedError, LateError):
            self.stop()
            raise

    def stop(self) -> RunEnd:
        """End it; the next program starts another."""
        if self._peer is None:
            return RunEnd()
        self._peer.close()
        self._peer = None
        return self.zygote.end()

    def close(self) -> None:
        """End it and its sandbox."""
        self.stop()
        self.zygote.close()


@dataclass(frozen=True)
class ServerSide:
    """A side of a run that is a server; `tests` makes the frame that has it run a program's tests."""

    server: Server
    tests: Callable[[int], tuple[bytes, bytes]]

    @contextmanager
    def start(self, change: int, deadline: float) -> Iterator[Peer]:
        """Have it run these tests."""
        peer = self.server.peer(deadline)
        peer.offer(*self.tests(change))
        yield peer

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """Let a server that has finished wait for the next tests; what it does otherwise nobody can know."""
        return RunEnd() if finished else self.server.stop()


class CompiledRunner:
    """Runs a slot's programs in one language. Holds the sandbox of its tests, and the last few tests, compiled."""

    def __init__(self, plan: Callable[[Program, Toolchain], Plan], toolchain: Toolchain, tests_zygote: ZygoteHandle):
        self.plan, self.toolchain, self.tests_zygote = plan, toolchain, tests_zygote
        self._kept: OrderedDict[str, tuple[Compiled, int]] = OrderedDict()

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        """Both sides, or how the answer does not compile. Tests that do not compile are no answer's failure, so they come first."""
        plan = self.plan(program, self.toolchain)
        compiled, claims = self._tests(plan, limits)
        built = build_program(plan.answer, limits, zygote)
        if isinstance(built, ExecutionResult):
            yield built
            return
        with closing(built):
            runs = Command(
                (PROGRAM,), limits.memory_mb, limits.seconds, address_mb=plan.address_mb, kept_kb=limits.output_kb
            )
            asks = replace(runs, words=(PROGRAM, CHANGE))
            yield Sides(
                CommandSide(runs, zygote, limits, built), CommandSide(asks, self.tests_zygote, limits, compiled), claims
            )

    def _tests(self, plan: Plan, limits: Limits) -> tuple[Compiled, int]:
        """The program of a plan's tests, and how many of its claims can be changed. ExecutionError if it does not compile."""
        key = hashlib.sha256(json.dumps([dict(plan.tests.files), plan.tests.command]).encode()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._build_tests(plan, limits)
            if len(self._kept) > _KEPT_TESTS:
                self._kept.popitem(last=False)[1][0].close()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _build_tests(self, plan: Plan, limits: Limits) -> tuple[Compiled, int]:
        lifted = build_program(plan.tests, limits, self.tests_zygote)
        if isinstance(lifted, Compiled):
            return lifted, plan.claims
        plain = build_program(plan.plain_tests, limits, self.tests_zygote)
        if isinstance(plain, Compiled):
            return plain, 0
        raise ExecutionError(f"the tests do not compile: {plain.stderr[:500]}")

    def close(self) -> None:
        """End the tests' sandbox."""
        for compiled, _ in self._kept.values():
            compiled.close()
        self._kept.clear()
        self.tests_zygote.close()


def build_program(build: Build, limits: Limits, zygote: ZygoteHandle) -> Compiled | ExecutionResult:
    """The program, or how its compiler failed."""
    zygote.write(build.files, keep=())
    pipes = [os.pipe() for _ in range(3)]
    silence = os.open(os.devnull, os.O_RDONLY)
    ours = [reader for reader, _ in pipes]
    try:
        try:
            zygote.execute(
                build.command,
                [silence, *(writer for _, writer in pipes)],
                _COMPILER_LIMITS,
                seconds=limits.compile_seconds,
                address_mb=_COMPILER_ADDRESS_MB,
                environment=build.environment,
                may_fork=True,
            )
        finally:
            for descriptor in (silence, *(writer for _, writer in pipes)):
                os.close(descriptor)
        kept = (limits.output_kb << 10, limits.output_kb << 10, _PROGRAM_BYTES)
        texts, late = _read_all(dict(zip(ours, kept, strict=True)), time.monotonic() + limits.compile_wall_seconds)
        end = zygote.end(patience=0.0 if late else 0.5)
    finally:
        for descriptor in ours:
            os.close(descriptor)
    stdout, stderr, program = texts
    if not late and end.exit_code == 0 and program:
        return Compiled(program)
    return ExecutionResult("compile_error", end.exit_code, "", _why(late, end, limits) + _text(stderr) + _text(stdout))


def _read_all(kept_bytes: dict[int, int], deadline: float) -> tuple[list[bytes], bool]:
    """The first bytes of each descriptor; what comes after is read and thrown away. True if the deadline came."""
    kept = {descriptor: bytearray() for descriptor in kept_bytes}
    late = False
    with selectors.DefaultSelector() as selector:
        for descriptor in kept:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and not late:
            left = deadline - time.monotonic()
            late = left <= 0
            for key, _ in [] if late else selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                kept[key.fd] += data[: kept_bytes[key.fd] - len(kept[key.fd])]
    return [bytes(text) for text in kept.values()], late


def _why(late: bool, end: RunEnd, limits: Limits) -> str:
    over = late or end.is_out_of_time(limits.compile_seconds)
    return f"the compiler took more than {limits.compile_seconds:g} seconds\n" if over else ""


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
