"""Make programs from answers in a child process with limits, because an answer is hostile input for a parser too.

An answer that is too long, or takes too much time or memory while it is parsed, fails alone. How an answer becomes a program is
left to the benchmark's family; no program runs here.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mftcoder.benchmarks.problem import Benchmark, Problem
from mftcoder.errors import MftError
from mftcoder.execution.bounds import bounded
from mftcoder.execution.channel import Channel, ChannelClosedError, pair
from mftcoder.execution.isolation import kernel
from mftcoder.execution.pool import MAX_ANSWER_CHARS
from mftcoder.execution.sandbox import ExecutionResult, Program

_SECONDS = 2.0  # of CPU time, for one answer
_MEMORY_MB = 512

Assembled = Program | ExecutionResult
_TOO_LONG = ExecutionResult("failed", stderr=f"the answer is longer than {MAX_ANSWER_CHARS} characters")
_TOO_COSTLY = ExecutionResult(
    "failed", stderr=f"reading the answer took more than {_SECONDS:g} seconds or {_MEMORY_MB} MB"
)
_OWN_TESTS = {"own": "tests"}  # replaces the problem's tests, which the parent has already


def assemble_all(benchmark: Benchmark, answers: Mapping[str, tuple[Problem, str]]) -> dict[str, Assembled]:
    """Key -> the answer's program, or the result of an answer from which no program can be made."""
    found: dict[str, Assembled] = {key: _TOO_LONG for key, (_, text) in answers.items() if len(text) > MAX_ANSWER_CHARS}
    waiting = [(key, *answer) for key, answer in answers.items() if key not in found]
    while waiting:
        for (key, problem, _), record in zip(waiting, _records(benchmark, waiting), strict=False):
            found[key] = _assembled(record, problem)
        waiting = [item for item in waiting if item[0] not in found]
        if waiting:  # the child ended while it parsed the first of these
            found[waiting.pop(0)[0]] = _TOO_COSTLY
    return {key: found[key] for key in answers}


def _assembled(record: dict[str, Any], problem: Problem) -> Assembled:
    if "mistake" in record:
        raise MftError(*record["mistake"])
    if "bug" in record:
        raise RuntimeError(f"{problem.id}: {record['bug']}")
    if "failed" in record:
        return ExecutionResult("failed", stderr=record["failed"])
    files = {role: problem.tests if text == _OWN_TESTS else text for role, text in record["files"].items()}
    return Program(record["language"], files)


def _records(benchmark: Benchmark, items: Sequence[tuple[str, Problem, str]]) -> Iterator[dict[str, Any]]:
    """One record per answer, until the child has parsed all or ends while it parses one."""
    with _child(benchmark, items) as channel:
        for _ in items:
            try:
                yield channel.receive()
            except ChannelClosedError:
                return


@contextmanager
def _child(benchmark: Benchmark, items: Sequence[tuple[str, Problem, str]]) -> Iterator[Channel]:
    """The channel to a child that makes programs from these answers, in order."""
    ours, theirs = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about threads; the child uses nothing that they may lock
        child = os.fork()
    if child == 0:
        # The child never returns, and runs none of the parent's clean-up.
        try:
            if kernel.is_supported():
                kernel.die_with_parent()
            channel = Channel(theirs)
            for _, problem, answer in items:
                channel.send(_record(benchmark, problem, answer))
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        try:
            yield Channel(ours)
        finally:
            ours.close()  # a child that still writes ends because of that
            os.waitpid(child, 0)


def _record(benchmark: Benchmark, problem: Problem, answer: str) -> dict[str, Any]:
    try:
        with bounded(_SECONDS, _MEMORY_MB):
            program = benchmark.program(problem, answer)
    except MftError as error:
        return {"mistake": list(error.problems)}
    except MemoryError:
        return {"failed": _TOO_COSTLY.stderr}
    except Exception as error:
        try:
            benchmark.program(problem, "")
        except Exception:
            return {"bug": f"{type(error).__name__}: {error}"}
        return {"failed": f"no program can be made from the answer: {type(error).__name__}"}
    files = {role: _OWN_TESTS if text is problem.tests else text for role, text in program.files.items()}
    return {"language": program.language, "files": files}
