"""One compiled program: its steps and its run, each in the sandbox.

Goes in: a plan. Comes out: an ExecutionResult; passed only if the tests' key came. Compilers are confined like programs: they
read hostile input (`#include "/etc/shadow"`), and may only start processes in addition.
"""

import os
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mftcoder.execution.plan import MEMORY_MB, Plan, Step
from mftcoder.execution.sandbox import ExecutionResult, Limits, Status
from mftcoder.execution.zygote_handle import RunEnd, ZygoteHandle

_COMPILER_LIMITS = Limits(memory_mb=3072, file_mb=256)
_COMPILER_ADDRESS_MB = 16384


@dataclass(frozen=True)
class _Output:
    """What a command wrote, by descriptor from 1, and how it ended."""

    texts: tuple[bytes, ...]
    late: bool
    end: RunEnd
    seconds: float


def run_plan(plan: Plan, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
    """Build, run, judge."""
    deadline = time.monotonic() + limits.compile_wall_seconds
    for step in plan.steps:
        failure = _compile(step, deadline, limits, plan, zygote)
        if failure:
            zygote.write({}, keep=())
            return failure
    zygote.write({}, keep=plan.keep)
    memory = replace(limits, memory_mb=limits.memory_mb + plan.overhead_mb)
    output = _execute(
        [part.replace(MEMORY_MB, str(limits.memory_mb)) for part in plan.command],
        zygote,
        memory,
        seconds=limits.seconds,
        wall_seconds=limits.wall_seconds,
        kept_bytes=limits.output_kb << 10,
        plan=plan,
        may_fork=False,
    )
    zygote.write({}, keep=())
    stdout, stderr, proof = output.texts
    status = _verdict(output, limits.seconds, proof.decode(errors="replace").strip() == plan.key, stderr)
    exit_code = output.end.exit_code if output.end.ended else None
    return ExecutionResult(status, exit_code, _text(stdout), _text(stderr), output.seconds)


def _compile(step: Step, deadline: float, limits: Limits, plan: Plan, zygote: ZygoteHandle) -> ExecutionResult | None:
    """None if it worked."""
    zygote.write(step.files, keep=step.keep)
    left = max(0.1, deadline - time.monotonic())
    output = _execute(
        step.command,
        zygote,
        _COMPILER_LIMITS,
        seconds=limits.compile_seconds,
        wall_seconds=left,
        kept_bytes=limits.output_kb << 10,
        plan=plan,
        may_fork=True,
    )
    if not output.late and output.end.exit_code == 0:
        return None
    stdout, stderr, _ = output.texts
    over = output.late or output.end.is_out_of_time(limits.compile_seconds)
    why = f"the compiler took more than {limits.compile_seconds:g} seconds\n" if over else ""
    return ExecutionResult("compile_error", output.end.exit_code, "", why + _text(stderr) + _text(stdout))


def _execute(
    command: Sequence[str],
    zygote: ZygoteHandle,
    limits: Limits,
    *,
    seconds: float,
    wall_seconds: float,
    kept_bytes: int,
    plan: Plan,
    may_fork: bool,
) -> _Output:
    """Run a command to its end or to its deadline, reading its outputs and its proof all the while."""
    address_mb = _COMPILER_ADDRESS_MB if may_fork else limits.memory_mb + plan.address_mb
    pipes = [os.pipe() for _ in range(3)]
    os.fchmod(pipes[-1][1], 0o666)  # Java opens it by its name in /proc, as the slot's user
    silence = os.open(os.devnull, os.O_RDONLY)
    ours = [reader for reader, _ in pipes]
    try:
        zygote.execute(
            command,
            [silence, *(writer for _, writer in pipes)],
            limits,
            seconds=seconds,
            address_mb=address_mb,
            environment=plan.environment,
            may_fork=may_fork,
        )
        for descriptor in (silence, *(writer for _, writer in pipes)):
            os.close(descriptor)
        started = time.monotonic()
        texts, late = _read_all(ours, started + wall_seconds, kept_bytes)
        return _Output(texts, late, zygote.end(clear=False, patience=0.0 if late else 0.5), time.monotonic() - started)
    finally:
        for descriptor in ours:
            os.close(descriptor)


def _read_all(descriptors: Sequence[int], deadline: float, kept_bytes: int) -> tuple[tuple[bytes, ...], bool]:
    """The first `kept_bytes` of each descriptor; what comes after is read and thrown away. True if the deadline came."""
    kept = {descriptor: bytearray() for descriptor in descriptors}
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return tuple(bytes(text) for text in kept.values()), True
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                kept[key.fd] += data[: kept_bytes - len(kept[key.fd])]
    return tuple(bytes(text) for text in kept.values()), False


def _verdict(output: _Output, seconds: float, proved: bool, stderr: bytes) -> Status:
    code = output.end.exit_code
    if output.late or output.end.is_out_of_time(seconds):
        return "timeout"
    if proved and code == 0:
        return "passed"
    if output.end.memory_killed or any(sign in stderr for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    return "failed"


_OUT_OF_MEMORY = (
    b"std::bad_alloc",  # C++
    b"java.lang.OutOfMemoryError",
    b"JavaScript heap out of memory",
    b"Array buffer allocation failed",
    b"fatal error: runtime: out of memory",  # Go
    b"runtime: cannot allocate memory",
    b"memory allocation of",  # Rust
)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
