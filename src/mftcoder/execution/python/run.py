"""Run one Python program: its candidate in a fork of the zygote, its judge in this process.

A pass means that the tests ran to their end here; nothing that the candidate's process reports about itself counts, its exit code
included. After each pass comes a negative control: the tests run again, with one claim changed, against the candidate's replies.
"""

import random
import re
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from mftcoder.execution.channel import Channel, ChannelClosedError, MessageTooLargeError, pair
from mftcoder.execution.python.claims import changed, count_claims
from mftcoder.execution.python.judge import Judge, Question, ScriptMismatchError, can_be_scripted
from mftcoder.execution.python.zygote_handle import RunEnd, ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program, Status

_REPLY_LIMIT = 8 << 20  # bytes of one message from the candidate
_SCRIPTED_LIMIT = 1 << 20  # bytes of all replies; tests with more get no script
_NUMPY = re.compile(r"\b(numpy|np)\b")


class _DeadlinePassed(BaseException):
    """Raised inside the tests when the time is over; tests cannot raise it themselves."""


def preload_for(program: Program) -> tuple[str, ...]:
    """Modules that this program's zygote should import once, because importing them in each fork costs far more."""
    named = program.files.get("preload", "").split()
    return (*named, "numpy") if _NUMPY.search(program.files["candidate"]) else tuple(named)


def run_python(program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
    """Run the tests against the candidate, with a script if there is one that fits."""
    key = program.files["tests"], program.files["entry_point"]
    try:
        return _run_once(program, limits, zygote, _scripts.get(key, ()))
    except ScriptMismatchError:
        return _run_once(program, limits, zygote, ())


_scripts: dict[tuple[str, str], Sequence[Question]] = {}
"""Tests and entry point -> the questions that they asked a candidate that passed. Never leaves this process."""


def _run_once(program: Program, limits: Limits, zygote: ZygoteHandle, script: Sequence[Question]) -> ExecutionResult:
    ours, theirs = pair()
    with ours:
        zygote.fork(theirs, limits)
        started = time.monotonic()
        judge = Judge(Channel(ours, limit=_REPLY_LIMIT), script)
        try:
            status, detail = _judged(judge, program, limits)
        except ScriptMismatchError:
            zygote.end()
            raise
        seconds = time.monotonic() - started
    hung_up = status == "failed" and not detail
    end = zygote.end(patience=5.0 if hung_up else 0.0)  # a process ends shortly after its descriptors close
    if hung_up:
        status, detail = _how_it_died(end, limits)
    return ExecutionResult(status, end.exit_code if end.ended else None, "", detail, seconds)


def _judged(judge: Judge, program: Program, limits: Limits) -> tuple[Status, str]:
    """The verdict and its detail; `failed` without a detail if the candidate's process closed the channel."""
    candidate, tests, entry_point = (program.files[role] for role in ("candidate", "tests", "entry_point"))
    try:
        with _deadline(limits.wall_seconds):
            random_state = random.getstate()
            judge.run(candidate, tests, entry_point)
            random.setstate(random_state)  # so that tests with random arguments ask the same questions again
            if _passes_negative_control(judge, tests, entry_point):
                return "cheated", "it also passes with what the tests expect changed"
        small = judge.channel.received < _SCRIPTED_LIMIT
        if small and (tests, entry_point) not in _scripts and can_be_scripted(judge.asked):
            _scripts[tests, entry_point] = judge.asked
        return "passed", ""
    except ScriptMismatchError:
        raise
    except _DeadlinePassed:
        return "timeout", f"no verdict within {limits.wall_seconds:g} seconds"
    except ChannelClosedError:
        return "failed", ""
    except MemoryError:
        return "out_of_memory", "MemoryError"
    except MessageTooLargeError as error:
        return "failed", str(error)
    except BaseException as error:  # any exception of the tests means that they failed
        most = (
            1024 * limits.output_kb if "report" in program.files else 500
        )  # `report`: tests that say what was printed
        return "failed", f"{type(error).__name__}: {error}"[:most]


def _passes_negative_control(judge: Judge, tests: str, entry_point: str) -> bool:
    """True if the tests pass with one claim's expected value made smaller, and also with it made larger."""
    claims = count_claims(tests)
    claim = secrets.randbelow(claims) if claims else 0
    return claims > 0 and all(_passes(judge, changed(tests, claim, direction), entry_point) for direction in (-1, 1))


def _passes(judge: Judge, tests: str, entry_point: str) -> bool:
    """True if these tests pass on the candidate's replies; False whatever they raise, even when the time is over."""
    try:
        judge.replay(tests, entry_point)
    except BaseException:
        return False
    return True


def _how_it_died(end: RunEnd, limits: Limits) -> tuple[Status, str]:
    if end.memory_killed:
        return "out_of_memory", "killed for its memory"
    if end.is_out_of_time(limits.seconds):
        return "timeout", f"more than {limits.seconds:g} seconds of CPU time"
    return "failed", f"the program ended before its tests did (exit code {end.exit_code})"


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_DeadlinePassed` here after `seconds`, and again every 0.1 seconds in case a test catches it."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _DeadlinePassed

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
