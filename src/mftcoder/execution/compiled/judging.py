"""An answer beside its tests, and the negative control behind every pass.

Goes in: the two sides of a run, each a process that can be started again. Comes out: an ExecutionResult. A pass means that the
tests ran to their end in a process that never held the answer, asking it for values; nothing the answer's process says about itself
counts as one. After a pass both run once more, with what one claim of the tests expects changed. The claim is drawn only then, and
the answer's process is a new one that cannot know of the first. An answer that passes this too is `cheated`, whatever the trick.
"""

import contextlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import Protocol

from mftcoder.execution.compiled.relay import EndedError, LateError, NoVerdictError, Peer, carry
from mftcoder.execution.python.zygote_handle import RunEnd
from mftcoder.execution.sandbox import ExecutionResult, Limits, Status

NO_CHANGE = -1
_DRAWS = 3  # of a claim, where the one that was drawn is never reached
_PATIENCE = 1.0  # seconds: a process ends a moment after it hangs up
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
        """Start it, on these tests. `change` is twice the number of the claim to change, and one more for upwards; or NO_CHANGE."""

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        """End it, or let it wait for the next run where it may and has `finished` this one. How it ended."""


@dataclass(frozen=True)
class Sides:
    """An answer that compiles, its tests, and how many claims of theirs can be changed."""

    answer: Side
    tests: Side
    claims: int


def judged(sides: Sides, limits: Limits) -> ExecutionResult:
    """The verdict on an answer."""
    word, result = run_once(sides, NO_CHANGE, limits)
    if word != "passed":
        return result
    for claim in secrets.SystemRandom().sample(range(sides.claims), min(sides.claims, _DRAWS)):
        word = control(sides, claim, limits)
        if word == "passed":
            return replace(result, status="cheated", stderr="it also passes with what the tests expect changed")
        if word != "void":
            break
    return result


def control(sides: Sides, claim: int, limits: Limits) -> str:
    """The tests' word for an answer with one claim changed downwards, and if it passes that, upwards too."""
    words = (run_once(sides, 2 * claim + upwards, limits)[0] for upwards in (0, 1))
    return next((word for word in words if word != "passed"), "passed")


def run_once(sides: Sides, change: int, limits: Limits) -> tuple[str, ExecutionResult]:
    """One run: the tests' word for it, and the result."""
    answer, tests = sides.answer, sides.tests
    started = time.monotonic()
    deadline = started + limits.wall_seconds
    with answer.start(change, deadline) as answers, tests.start(change, deadline) as questions:
        word, detail = _word(questions, answers)
        seconds = time.monotonic() - started
        tests_end = tests.end(finished=word in _VERDICTS, patience=_PATIENCE if word == "crashed" else 0.0)
        end = answer.end(finished=False, patience=_PATIENCE if word == "hung up" else 0.0)
        stdout, stderr = answers.drain()
    stderr = "\n".join(text for text in (detail, stderr) if text)
    status = _status(word, stderr, end, tests_end, limits.seconds)
    return word, ExecutionResult(status, end.exit_code if end.ended else None, stdout, stderr, seconds)


_VERDICTS = ("passed", "failed", "void")


def _word(tests: Peer, answer: Peer) -> tuple[str, str]:
    """The tests' verdict and its detail, or why there is none. `void`: all passed, and the changed claim was never reached."""
    try:
        word, _, detail = carry(tests, answer).partition(" ")
    except LateError:
        return "late", "no verdict in time"
    except EndedError:
        return "hung up", "the program ended before its tests did"
    except NoVerdictError:
        return "crashed", "the tests ended without a verdict"
    return (word, detail) if word in _VERDICTS else ("failed", detail)


def _status(word: str, stderr: str, end: RunEnd, tests_end: RunEnd, seconds: float) -> Status:
    if word == "passed":
        return "passed"
    if word == "late" or (word == "hung up" and end.is_out_of_time(seconds)):
        return "timeout"
    if word == "crashed" and tests_end.is_out_of_time(seconds):
        return "timeout"
    if end.memory_killed or any(sign in stderr for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    return "failed"
