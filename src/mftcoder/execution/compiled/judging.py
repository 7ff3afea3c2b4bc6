"""The verdict on a candidate, and the negative control after each pass.

A pass means that the tests ran to their end in the judge's process, which never holds the answer and asks the candidate's process
for values; nothing that the candidate reports about itself counts. After a pass both run again with one claim changed. The claim is
drawn only then, and the candidate's process is a new one. An answer that passes again is `cheated`.
"""

import contextlib
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass, replace
from typing import Protocol

from mftcoder.execution.compiled.relay import EndedError, LateError, NoVerdictError, Peer, relay
from mftcoder.execution.python.zygote_handle import RunEnd
from mftcoder.execution.sandbox import ExecutionResult, Limits, Status

NO_CHANGE = -1
_DRAWS = 3  # of a claim at most, when the tests do not reach the one that was drawn
_PATIENCE = 1.0  # seconds that a process may take to end after it closed its socket
_OUT_OF_MEMORY = (
    "std::bad_alloc",  # C++
    "java.lang.OutOfMemoryError",
    "JavaScript heap out of memory",
    "Array buffer allocation failed",
    "fatal error: runtime: out of memory",  # Go
    "runtime: cannot allocate memory",
    "memory allocation of",  # Rust
)


class Side(Protocol):
    """One of the two processes of a run."""

    def start(self, change: int, deadline: float) -> contextlib.AbstractContextManager[Peer]:
        """Start the process. `change` is NO_CHANGE, or 2 * claim to make what the claim expects smaller, 2 * claim + 1 for larger."""

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """End the process and say how it ended. A server that `finished` this run keeps waiting for the next one."""


@dataclass(frozen=True)
class Sides:
    """A candidate that compiles, its judge, and the number of claims that can be changed."""

    candidate: Side
    judge: Side
    claims: int


def judge(sides: Sides, limits: Limits) -> ExecutionResult:
    """Run the tests, and if they pass, a negative control."""
    outcome, result = run_once(sides, NO_CHANGE, limits)
    if outcome != "passed":
        return result
    for claim in secrets.SystemRandom().sample(range(sides.claims), min(sides.claims, _DRAWS)):
        outcome = negative_control(sides, claim, limits)
        if outcome == "passed":
            return replace(result, status="cheated", stderr="it also passes with what the tests expect changed")
        if outcome != "void":
            break
    return result


def negative_control(sides: Sides, claim: int, limits: Limits) -> str:
    """The outcome with this claim's expected value made smaller; if the tests pass, the outcome with it made larger."""
    outcomes = (run_once(sides, 2 * claim + larger, limits)[0] for larger in (0, 1))
    return next((outcome for outcome in outcomes if outcome != "passed"), "passed")


def recorded(sides: Sides, limits: Limits) -> ExecutionResult:
    """One run whose result is what the candidate answered: [hashes of its answers, whether the tests came to their end] as stdout."""
    answers: list[bytes] = []
    outcome, result = run_once(sides, NO_CHANGE, limits, answers)
    if outcome == "crashed":  # the judge: it says nothing about the candidate
        return result
    return replace(result, status="passed", stdout=json.dumps([list(map(_kind, answers)), outcome in _REPORTED]))


def _kind(frame: bytes) -> str:
    """A value as `a` and its hash; an error as `e` and the name of its class, where it has one: another message is the same error."""
    if frame[:1] == b"a":
        return f"a{hashlib.sha256(frame).hexdigest()}"
    named = re.match(r"e([A-Za-z_][\w.$]*)(?=:|\Z)", frame.decode(errors="replace"))
    return f"e{named[1] if named else ''}"


def run_once(
    sides: Sides, change: int, limits: Limits, answers: list[bytes] | None = None
) -> tuple[str, ExecutionResult]:
    """One run of both processes: its outcome (see `_outcome`) and the result. `answers` gets what the candidate sends."""
    started = time.monotonic()
    deadline = started + limits.wall_seconds
    with sides.candidate.start(change, deadline) as candidate, sides.judge.start(change, deadline) as tests:
        outcome, detail = _outcome(tests, candidate, answers)
        seconds = time.monotonic() - started
        judge_end = sides.judge.end(finished=outcome in _REPORTED, patience=_PATIENCE if outcome == "crashed" else 0.0)
        end = sides.candidate.end(finished=False, patience=_PATIENCE if outcome == "hung up" else 0.0)
        stdout, stderr = candidate.drain()
    stderr = "\n".join(text for text in (detail, stderr) if text)
    status = _status(outcome, stderr, end, judge_end, limits.seconds)
    return outcome, ExecutionResult(status, end.exit_code if end.ended else None, stdout, stderr, seconds)


_REPORTED = ("passed", "failed", "void")
"""Outcomes that a judge reports. `void`: the tests passed without reaching the changed claim."""


def _outcome(tests: Peer, candidate: Peer, answers: list[bytes] | None) -> tuple[str, str]:
    """What the judge reported and the detail; or `late`, `hung up` (the candidate ended), `crashed` (the judge ended)."""
    try:
        outcome, _, detail = relay(tests, candidate, answers).partition(" ")
    except LateError:
        return "late", "no verdict in time"
    except EndedError:
        return "hung up", "the program ended before its tests did"
    except NoVerdictError:
        return "crashed", "the tests ended without a verdict"
    return (outcome, detail) if outcome in _REPORTED else ("failed", detail)


def _status(outcome: str, stderr: str, end: RunEnd, judge_end: RunEnd, seconds: float) -> Status:
    if outcome == "passed":
        return "passed"
    if outcome == "late" or (outcome == "hung up" and end.is_out_of_time(seconds)):
        return "timeout"
    if outcome == "crashed" and judge_end.is_out_of_time(seconds):
        return "timeout"
    if end.memory_killed or any(sign in stderr for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    return "failed"
