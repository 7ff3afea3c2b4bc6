"""Run standalone functions in the sandbox, and record the results of a few calls.

Each function gets a `Behaviour` (calls with their results, and mutants that give another result for one of them), or the reason why it
has none. Each function runs in a sandbox of its own, with recorder.py beside it. The results are read as literals and never run here.
"""

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mftcoder.curation.mining.standalone import StandaloneFunction
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program

CALLS = 5  # of a function
LIMITS = Limits(seconds=4, memory_mb=1024)
_PAGE = 400
"""Characters of a result that one run returns: the pool keeps the first 500 of the exception that ends the tests."""


@dataclass(frozen=True)
class Behaviour:
    """Some calls of a function and their results, as Python text, and mutants (programs) that give another result for one of them."""

    calls: tuple[tuple[str, str], ...]  # (arguments, answer)
    mutants: tuple[str, ...]

    def asserts(self, name: str, most: int | None = None) -> str:
        """`assert name(arguments) == answer`, one line for each call."""
        return "\n".join(f"assert {name}({arguments}) == {answer}" for arguments, answer in self.calls[:most])


def record(
    functions: Sequence[StandaloneFunction], pool: Pool, on_done: Callable[[], None] = lambda: None
) -> list[Behaviour | str]:
    """The behaviour of each function, or the reason why it has none, in the given order. `on_done` is called after each function."""
    texts: dict[str, str] = {str(number): "" for number in range(len(functions))}
    found: dict[str, Behaviour | str] = {}
    while texts:
        programs = ((key, _program(functions[int(key)], len(text))) for key, text in texts.items())
        longer = {}
        for key, result in pool.run(list(programs), LIMITS):
            page = _page(result)
            if page is not None and len(page) == _PAGE:
                longer[key] = texts[key] + page
                continue
            found[key] = _reason(result) if page is None else _behaviour(texts[key] + page, functions[int(key)])
            on_done()
        texts = longer
    return [found[str(number)] for number in range(len(functions))]


def _program(item: StandaloneFunction, start: int) -> Program:
    """A program that records the function and ends with an exception that holds the result's characters from `start` on."""
    recorder = (files("mftcoder.curation.mining") / "recorder.py").read_text(encoding="utf-8")
    function, mutants = item.function.source + "\n", [mutant + "\n" for mutant in item.mutants]
    settings = f"mutants={mutants!r}, arity={item.arity}, seeds={item.seeds!r}, own={item.literals!r}, most={CALLS}"
    text = f"TEXT = record({item.context!r}, {function!r}, {item.function.name!r}, {settings})\n"
    page = "def page(start, length):\n    return TEXT[start : start + length]\n"
    tests = f"class Recorded(Exception): pass\nraise Recorded(page({start}, {_PAGE}))\n"
    return Program("python", {"candidate": recorder + text + page, "tests": tests, "entry_point": "page"})


def _page(result: ExecutionResult) -> str | None:
    name, _, text = result.stderr.partition(": ")
    return text if name == "Recorded" else None


def _reason(result: ExecutionResult) -> str:
    if result.status == "failed":
        error = result.stderr.removeprefix("CandidateError: ").partition(":")[0]
        return f"its part of the module raises {error}" if error.isidentifier() else "ends the process"
    return result.status.replace("_", " ")


def _behaviour(text: str, item: StandaloneFunction) -> Behaviour | str:
    """The result, checked: it comes from a process that ran mined code."""
    try:
        result: Any = json.loads(text)
        if "reason" in result:
            return str(result["reason"])
        calls = tuple((str(arguments), str(answer)) for arguments, answer in result["calls"])
        for arguments, answer in calls:
            ast.literal_eval(f"[{arguments}]")
            ast.literal_eval(answer)
        mutants = tuple(item.mutants[int(number)] for number in result["killed"])
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, RecursionError, MemoryError):
        return "its result cannot be read"
    return Behaviour(calls, mutants) if mutants else "no call tells it from a mutant"
