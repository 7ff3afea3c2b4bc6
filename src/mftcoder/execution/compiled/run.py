"""Build programs in the sandbox, and start the processes of a run: commands (new for each run) and servers (kept between runs).

Compilers are confined like programs, because they read hostile input (`#include "/etc/shadow"`); in addition they may start
processes. Tests are compiled once for all answers to them, and run in a sandbox of their own. The verdict is left to judging.py.
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
_KEPT_TESTS = 16  # compiled tests that a slot keeps


class SealedProgram:
    """A program that was built, as a file in memory that cannot be changed any more."""

    def __init__(self, program: bytes):
        self.descriptor = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(self.descriptor), "wb") as file:
            file.write(program)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def content(self) -> bytes:
        """What the file holds."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class Command:
    """How to start a process of a run."""

    arguments: Sequence[str]
    memory_mb: int  # what the program may use; replaces MEMORY_MB
    seconds: float  # of CPU time
    overhead_mb: int = 0  # memory of the runtime itself
    address_mb: int = 1024  # address space beyond the memory limit; some runtimes reserve far more than they use
    kept_kb: int = 0  # of each output
    frames_on_stdio: bool = False  # else on descriptor WIRE

    def start(
        self, zygote: ZygoteHandle, limits: Limits, deadline: float, change: int, program: SealedProgram | None = None
    ) -> Peer:
        """Start the process in an empty folder."""
        values = {PROGRAM: f"/proc/self/fd/{WIRE + 1}", CHANGE: str(change)}
        arguments = [values.get(word, word).replace(MEMORY_MB, str(self.memory_mb)) for word in self.arguments]
        zygote.write({}, keep=())
        ours, theirs = pair()
        out, err = os.pipe(), os.pipe()
        peer = Peer(ours, (out[0], err[0]), self.kept_kb << 10, deadline)
        devnull = os.open(os.devnull, os.O_RDWR)
        try:
            with theirs:
                wire = theirs.fileno()
                descriptors = [wire, wire, err[1]] if self.frames_on_stdio else [devnull, out[1], err[1], wire]
                memory_mb = self.memory_mb + self.overhead_mb
                zygote.execute(
                    arguments,
                    descriptors + ([program.descriptor] if program else []),
                    replace(limits, memory_mb=memory_mb),
                    seconds=self.seconds,
                    address_mb=memory_mb + self.address_mb,
                    environment={},
                    may_fork=False,
                )
        finally:
            for descriptor in (devnull, out[1], err[1]):
                os.close(descriptor)
        return peer


@dataclass(frozen=True)
class CommandSide:
    """A side that is a new process for each run."""

    command: Command
    zygote: ZygoteHandle
    limits: Limits
    program: SealedProgram | None = None  # replaces PROGRAM in the command
    first: tuple[bytes, bytes] | None = None  # a frame to send before all others

    @contextmanager
    def start(self, change: int, deadline: float) -> Iterator[Peer]:
        """Start the process; a judge finds `change` in its command."""
        with closing(self.command.start(self.zygote, self.limits, deadline, change, self.program)) as peer:
            if self.first:
                peer.offer(*self.first)
            yield peer

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """Kill what still runs."""
        return self.zygote.end(patience=patience)


class Server:
    """A judge's process that runs one program's tests after another's."""

    def __init__(self, command: Command, zygote: ZygoteHandle):
        self.command, self.zygote = command, zygote
        self._peer: Peer | None = None

    def peer(self, deadline: float) -> Peer:
        """The running server; started if there is none."""
        if self._peer is None:
            self._peer = self.command.start(self.zygote, Limits(), deadline, NO_CHANGE)
        self._peer.deadline = deadline
        return self._peer

    def request(self, kind: bytes, body: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Send a frame and receive one. Ends the server if that fails, and raises LateError or EndedError."""
        try:
            peer = self.peer(deadline)
            peer.send(kind, body)
            return peer.receive()
        except (EndedError, LateError):
            self.stop()
            raise

    def stop(self) -> RunEnd:
        """End the server; the next program starts another."""
        if self._peer is None:
            return RunEnd()
        self._peer.close()
        self._peer = None
        return self.zygote.end()

    def close(self) -> None:
        self.stop()
        self.zygote.close()


@dataclass(frozen=True)
class ServerSide:
    """A side that is a server. `request` makes the frame that asks it to run the tests, from `change`."""

    server: Server
    request: Callable[[int], tuple[bytes, bytes]]

    @contextmanager
    def start(self, change: int, deadline: float) -> Iterator[Peer]:
        """Ask the server to run the tests."""
        peer = self.server.peer(deadline)
        peer.offer(*self.request(change))
        yield peer

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """Keep a server that finished its run; stop any other, because its state is unknown."""
        return RunEnd() if finished else self.server.stop()


class CompiledRunner:
    """Runs a slot's programs in one language. Keeps the zygote of the tests, and the last few tests compiled."""

    def __init__(
        self,
        plan: Callable[[Program, Toolchain], Plan],
        alone: Callable[[str, Toolchain], Build],
        linted: Callable[[str, Toolchain], Build],
        toolchain: Toolchain,
        tests_zygote: ZygoteHandle,
    ):
        self.plan, self.alone, self.linted = plan, alone, linted
        self.toolchain, self.tests_zygote = toolchain, tests_zygote
        self._kept: OrderedDict[str, tuple[SealedProgram, int]] = OrderedDict()

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        """Both sides, or the compile error of the answer. Tests compile first: their errors are not the answer's failure."""
        plan = self.plan(program, self.toolchain)
        tests, claims = self._tests(plan, limits)
        built = build_program(plan.answer, limits, zygote)
        if isinstance(built, ExecutionResult):
            yield built
            return
        with closing(built):
            command = Command(
                (PROGRAM,), limits.memory_mb, limits.seconds, address_mb=plan.address_mb, kept_kb=limits.output_kb
            )
            judge = CommandSide(replace(command, arguments=(PROGRAM, CHANGE)), self.tests_zygote, limits, tests)
            yield Sides(CommandSide(command, zygote, limits, built), judge, claims)

    def _tests(self, plan: Plan, limits: Limits) -> tuple[SealedProgram, int]:
        """The compiled tests of a plan, and the number of claims that can be changed. ExecutionError if they do not compile."""
        key = hashlib.sha256(json.dumps([dict(plan.tests.files), plan.tests.command]).encode()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._build_tests(plan, limits)
            if len(self._kept) > _KEPT_TESTS:
                self._kept.popitem(last=False)[1][0].close()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _build_tests(self, plan: Plan, limits: Limits) -> tuple[SealedProgram, int]:
        instrumented = build_program(plan.tests, limits, self.tests_zygote)
        if isinstance(instrumented, SealedProgram):
            return instrumented, plan.claims
        plain = build_program(plan.plain_tests, limits, self.tests_zygote)
        if isinstance(plain, SealedProgram):
            return plain, 0
        raise ExecutionError(f"the tests do not compile: {plain.stderr[:500]}")

    def compile(self, code: str, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """Whether the code compiles as a file of its own; it does not run."""
        return compiled_alone(self.alone(code, self.toolchain), limits, zygote)

    def warnings(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """What the linter says about the code as it stands."""
        return warnings_of(self.linted(program.files["candidate"], self.toolchain), limits, zygote)

    def close(self) -> None:
        for program, _ in self._kept.values():
            program.close()
        self._kept.clear()
        self.tests_zygote.close()


def compiled_alone(build: Build, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
    """`passed` if this can be built, else the compile error."""
    built = build_program(build, limits, zygote)
    if isinstance(built, ExecutionResult):
        return built
    built.close()
    return ExecutionResult("passed")


def warnings_of(build: Build, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
    """What a linter prints, as stdout."""
    built = build_program(build, limits, zygote)
    if isinstance(built, ExecutionResult):
        return built
    with closing(built):
        return ExecutionResult("passed", 0, built.content().decode(errors="replace"))


def build_program(build: Build, limits: Limits, zygote: ZygoteHandle) -> SealedProgram | ExecutionResult:
    """The program, or the compile error."""
    zygote.write(build.files, keep=())
    pipes = [os.pipe() for _ in range(3)]
    devnull = os.open(os.devnull, os.O_RDONLY)
    ours = [reader for reader, _ in pipes]
    try:
        try:
            zygote.execute(
                build.command,
                [devnull, *(writer for _, writer in pipes)],
                _COMPILER_LIMITS,
                seconds=limits.compile_seconds,
                address_mb=_COMPILER_ADDRESS_MB,
                environment=build.environment,
                may_fork=True,
            )
        finally:
            for descriptor in (devnull, *(writer for _, writer in pipes)):
                os.close(descriptor)
        kept = (limits.output_kb << 10, limits.output_kb << 10, _PROGRAM_BYTES)
        texts, late = _read_all(dict(zip(ours, kept, strict=True)), time.monotonic() + limits.compile_wall_seconds)
        end = zygote.end(patience=0.0 if late else 0.5)
    finally:
        for descriptor in ours:
            os.close(descriptor)
    stdout, stderr, program = texts
    if not late and end.exit_code == 0 and program:
        return SealedProgram(program)
    is_over = late or end.is_out_of_time(limits.compile_seconds)
    note = f"the compiler took more than {limits.compile_seconds:g} seconds\n" if is_over else ""
    return ExecutionResult("compile_error", end.exit_code, "", note + (stderr + stdout).decode(errors="replace"))


def _read_all(kept_bytes: dict[int, int], deadline: float) -> tuple[list[bytes], bool]:
    """The first bytes of each descriptor (the rest is discarded), and whether the deadline passed."""
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
