"""One Python program: its candidate in a fork of the zygote, its judge here.

Goes in: a program with the roles `candidate`, `tests` and `entry_point`. Comes out: an ExecutionResult. A pass means that the tests ran to
their end in this process; nothing the candidate's process says about itself, least of all its exit code, counts as one. Behind each
pass stands a negative control: the tests run once more, with one claim changed, against what the candidate has answered.
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
from mftcoder.execution.python.judge import Judge, OtherQuestionsError, Question, can_be_scripted
from mftcoder.execution.python.zygote_handle import RunEnd, ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program, Status

_ANSWER_LIMIT = 8 << 20  # bytes of one answer
_SCRIPTED_LIMIT = 1 << 20  # bytes of all answers, beyond which they are not asked for together
_NUMPY = re.compile(r"\b(numpy|np)\b")


class _DeadlinePassed(BaseException):
    """Raised into the judge when the time is over; no BaseException of a test's own can be taken for it."""


def preload_for(program: Program) -> tuple[str, ...]:
    """Modules a warm zygote should hold for this program, because importing them in each fork costs far more."""
    return ("numpy",) if _NUMPY.search(program.files["candidate"]) else ()


def run_python(program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
    """Run the tests against the candidate."""
    key = program.files["tests"], program.files["entry_point"]
    try:
        return _run_once(program, limits, zygote, _scripts.get(key, ()))
    except OtherQuestionsError:
        return _run_once(program, limits, zygote, ())


# What tests asked a candidate that passed them; theirs alone, and only in this process.
_scripts: dict[tuple[str, str], Sequence[Question]] = {}


def _run_once(program: Program, limits: Limits, zygote: ZygoteHandle, script: Sequence[Question]) -> ExecutionResult:
    here, there = pair()
    with here:
        zygote.fork(there, limits)
        started = time.monotonic()
        judge = Judge(Channel(here, limit=_ANSWER_LIMIT), script)
        try:
            status, detail = _judged(judge, program, limits)
        except OtherQuestionsError:
            zygote.end()
            raise
        seconds = time.monotonic() - started
    hung_up = status == "failed" and not detail
    end = zygote.end(patience=5.0 if hung_up else 0.0)  # its end comes a moment after its descriptors close
    if hung_up:
        status, detail = _how_it_died(end, limits)
    return ExecutionResult(status, end.exit_code if end.ended else None, "", detail, seconds)


def _judged(judge: Judge, program: Program, limits: Limits) -> tuple[Status, str]:
    """The verdict; failed without a detail when the candidate's process hung up."""
    candidate, tests, entry_point = (program.files[role] for role in ("candidate", "tests", "entry_point"))
    try:
        with _deadline(limits.wall_seconds):
            dice = random.getstate()
            judge.run(candidate, tests, entry_point)
            random.setstate(dice)  # tests that ask at random ask the same again
            if _passes_a_wrong_test(judge, tests, entry_point):
                return "cheated", "it also passes with what the tests expect changed"
        small = judge.channel.received < _SCRIPTED_LIMIT
        if small and (tests, entry_point) not in _scripts and can_be_scripted(judge.asked):
            _scripts[tests, entry_point] = judge.asked
        return "passed", ""
    except OtherQuestionsError:
        raise
    except _DeadlinePassed:
        return "timeout", f"no verdict within {limits.wall_seconds:g} seconds"
    except ChannelClosedError:
        return "failed", ""
    except MemoryError:
        return "out_of_memory", "MemoryError"
    except MessageTooLargeError as error:
        return "failed", str(error)
    except BaseException as error:  # whatever the tests raise is the tests' verdict
        return "failed", f"{type(error).__name__}: {error}"[:500]


def _passes_a_wrong_test(judge: Judge, tests: str, entry_point: str) -> bool:
    """The negative control: one claim is changed downwards, and if that passes, upwards too. judging.py has the other languages'."""
    claims = count_claims(tests)
    claim = secrets.randbelow(claims) if claims else 0
    return claims > 0 and all(_passes(judge, changed(tests, claim, way), entry_point) for way in (-1, 1))


def _passes(judge: Judge, tests: str, entry_point: str) -> bool:
    """True if these tests pass on what the candidate has answered; whatever they raise, and were it for want of time, they do not."""
    try:
        judge.replayed(tests, entry_point)
    except BaseException:
        return False
    return True


def _how_it_died(end: RunEnd, limits: Limits) -> tuple[Status, str]:
    if end.memory_killed:
        return "out_of_memory", "killed for its memory"
    if end.is_out_of_time(limits.seconds):
        return "timeout", f"more than {limits.seconds:g} seconds of the processor"
    return "failed", f"the program ended before its tests did (exit code {end.exit_code})"


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_DeadlinePassed` here after `seconds`, and again every tenth of one in case a test swallows it."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _DeadlinePassed

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
