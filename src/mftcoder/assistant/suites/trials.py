"""Code and tests of a model run in the sandbox, on the code itself, on the same program written otherwise, and on mutants of it.

Tests in other languages are plain comparisons (examples.py, exams.py), which the exam's judge runs away from the code.

Tests run beside the code, as they do in a real suite (curation/verification/harness.py). What they report is believed only together:
they pass on the code, pass on the same program written otherwise, and a claim of theirs fails on a mutant.
"""

import ast
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.suites.examples import HELPERS, as_script, require_callable
from mftcoder.assistant.suites.exams import CALLS_ONLY, EXAMS, head_of, sources
from mftcoder.assistant.suites.inputs import Reference, other_calls, steady
from mftcoder.curation.mining.languages.mutations import mutations as mutations_of
from mftcoder.curation.mining.mutations import mutations
from mftcoder.curation.verification.plan import Run
from mftcoder.curation.verification.verdict import Verdict, verdict_of
from mftcoder.errors import ConfigError, ExecutionError
from mftcoder.execution.run_programs import Sandbox
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program

LIMITS = Limits(seconds=3, memory_mb=1024)
MUTANTS = 10


class Trials:
    """A sandbox that is opened when the first program runs."""

    def __init__(self, open_sandbox: Callable[[str], Sandbox], limits: Limits = LIMITS):
        self._open, self._limits = open_sandbox, limits

    def tests(self, function: FunctionText, codes: Iterable[tuple[str, str]]) -> list[Verdict]:
        """The verdict of each pair of code and tests of the function."""
        if function.file.language != "python":
            return self._exams(function, codes)
        name = function.name.split(".")[0]
        return self._run([Run("python", code, {"tests": [tests, name, True]}) for code, tests in codes])

    def _exams(self, function: FunctionText, codes: Iterable[tuple[str, str]]) -> list[Verdict]:
        exam = EXAMS.get(function.file.language)
        return [
            _of_exam(result, exam.is_claim if exam else _FAILED_ASSERT) for result in self._results(function, codes)
        ]

    def _results(self, function: FunctionText, codes: Iterable[tuple[str, str]]) -> list[ExecutionResult]:
        language = function.file.language
        if language == "javascript":
            return self._open("js").run_all([_script(function, *pair) for pair in codes], self._limits)
        head = head_of(function)
        programs = [Program(language, sources(language, head, code, tests)) for code, tests in codes]
        return self._open(language).run_all(programs, self._limits)

    def answers(self, function: FunctionText, code: str, calls: Sequence[str]) -> list[str] | None:
        """What the code answers to calls, up to the one that ends the program; None if the calls do not compile."""
        [result] = self._results(function, [(code, "\n".join([CALLS_ONLY, *calls]))])
        if result.status == "passed":
            answers: list[str] = json.loads(result.stdout)[0]
            return (
                answers[1:] if function.file.language == "javascript" else answers
            )  # there the first one is about loading
        if _ILL_TYPED in result.stderr:
            return None
        raise ExecutionError(f"{_NO_VERDICT}: {' '.join(result.stderr.split())[:200]}")

    def reference(self, function: FunctionText, calls: Sequence[str]) -> Reference:
        """What the function gives for other inputs than those of the calls; empty if none can be made of them."""
        for is_careful in (False, True):
            others = other_calls(function, calls, is_careful=is_careful)
            if others and self.answers(function, function.file.text, others) is not None:
                return steady(lambda left: self.answers(function, function.file.text, left) or [], others)
        return Reference((), ())

    def said(self, file: SourceFile, text: str) -> str:
        """What the linter or the compiler of a language with types says about a text in the place of the file."""
        program = Program(file.language, {"candidate": text, "warnings": file.path.name})
        [result] = self._open(file.language).run_all([program], self._limits)
        if result.status != "passed":
            raise ExecutionError(f"{_NO_VERDICT}: {' '.join(result.stderr.split())[:200]}")
        return result.stdout

    def doctests(self, code: str, docstrings: Sequence[tuple[str, str]]) -> Verdict:
        """The verdict on the examples of docstrings, each with its name."""
        return self._run([Run("python", code, {"doctests": [list(pair) for pair in docstrings]})])[0]

    def loading(self, code: str) -> Verdict:
        """Whether the code can be loaded."""
        return self._run([Run("python", code, {"import": []})])[0]

    def _run(self, runs: Sequence[Run]) -> list[Verdict]:
        results = self._open("python").run_all((run.program() for run in runs), self._limits)
        verdicts = []
        for run, result in zip(runs, results, strict=True):
            verdict = verdict_of(result, "python", tuple(run.checks))
            if verdict is None:
                raise ExecutionError(_NO_VERDICT)
            verdicts.append(verdict)
        return verdicts


def _script(function: FunctionText, code: str, tests: str) -> Program:
    named = {"helpers": HELPERS, "entry_point": function.name, "candidate": as_script(function.file, code)}
    if not tests.startswith(CALLS_ONLY):
        return Program("js", {**named, "tests": tests})
    attempts = (f"try {{ {call}; }} catch (error) {{}}" for call in tests.splitlines()[1:])
    return Program("js", {**named, "tests": "\n".join(attempts), "record": "answers"})


_NO_VERDICT = "the sandbox failed, which says nothing about the code. `mft doctor` looks at it"


_ILL_TYPED = "the tests do not compile"
_FAILED_ASSERT = re.compile("assertion failed")


def _of_exam(result: ExecutionResult, is_claim: re.Pattern[str]) -> Verdict:
    """The exam's result in the words of a verdict."""
    if result.status == "sandbox_error":
        if (at := result.stderr.find(_ILL_TYPED)) >= 0:  # a value of the wrong type
            return Verdict.failed("tests", " ".join(result.stderr[at:].split())[:200])
        said = " ".join(result.stderr.split())[:200]
        raise ExecutionError(f"{_NO_VERDICT}{f': {said}' if said else ''}")
    if result.status == "passed":
        return Verdict("passed", ("tests",))
    reasons = {"timeout": "too_slow", "out_of_memory": "too_much_memory", "cheated": "proves_nothing"}
    said = next(iter(result.stderr.splitlines()), "").strip()[:200]
    if result.status == "compile_error":
        said = f"does not compile: {said}"
    elif is_claim.match(said):
        said = "AssertionError"
    return Verdict.failed("tests", reasons.get(result.status, said.replace(":", "", 1)))


def require_loading(trials: Trials, function: FunctionText) -> None:
    """ConfigError if the file cannot be loaded in the sandbox, so that nothing of it can be tested."""
    if function.file.language == "javascript":
        require_callable(function)
        [verdict] = trials.tests(function, [(function.file.text, "void 0;")])
    elif function.file.language == "python":
        verdict = trials.loading(function.file.text)
    else:
        [verdict] = trials.tests(function, [(function.file.text, "")])
    if verdict.outcome != "passed":
        raise ConfigError(
            f"{function.file.name}: cannot be loaded alone in the sandbox ({verdict.why}{f': {verdict.detail}' if verdict.detail else ''}), "
            "so no test of it can run"
        )


def passed(verdict: Verdict) -> bool:
    """Whether the tests ran to their end, held, and would not hold without the code."""
    return verdict.outcome == "passed" and "tests" in verdict.checks


def killed(verdict: Verdict) -> bool:
    """Whether the tests failed by a claim or an exception of their own. A run that was ended from outside does not count."""
    return verdict.outcome == "failed" and verdict.why == "tests" and verdict.detail.split(" ")[0] not in _ENDED


def claims_failed(verdict: Verdict) -> bool:
    """Whether a claim of the tests failed. An exception alone shows that the code was called, not that its result was checked."""
    return killed(verdict) and verdict.detail.split(" ")[0] == "AssertionError"


_ENDED = frozenset({"", "too_slow", "too_much_memory", "the", "SystemExit", "KeyboardInterrupt"})


def mutants(function: FunctionText, count: int) -> list[str]:
    """The whole file with one bug in the function, at most `count` times, the same ones each time."""
    chosen = random.Random(function.text)
    if function.file.language == "python":
        bugs = mutations(function.text, chosen)
    else:
        bugs = mutations_of(function.text, function.file.language, function.name.rpartition(".")[0], chosen)
    return [function.placed(bug.source) for bug in islice(bugs, count)]


def rewritten(function: FunctionText) -> str:
    """The same program in other words: other lines, no comments or docstring, one name more. Tests of what it does cannot tell.

    Plain comparisons cannot look at the text, so that they get the file as it is once more.
    """
    if function.file.language != "python":
        return function.file.text
    tree = ast.parse(function.text)
    [node] = tree.body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    node.body = [*ast.parse("mft_unused = None").body, *(body or [ast.Pass()])]
    return function.placed(ast.unparse(ast.fix_missing_locations(tree)))


@dataclass(frozen=True)
class Score:
    """How many mutants fail."""

    killed: int
    total: int

    @property
    def line(self) -> str:
        return f"{self.killed} of {self.total} mutants fail ({self.killed / max(1, self.total):.0%})"


@dataclass(frozen=True)
class Judged:
    """The single tests that hold, and how many mutants they find together."""

    kept: tuple[str, ...]
    score: Score
    notes: tuple[str, ...]


def judge_tests(trials: Trials, function: FunctionText, tests: Sequence[str], bugs: Sequence[str]) -> Judged:
    """The tests that pass on the function and of which a claim fails on at least one of the `bugs`. RefusedAnswer if there is none."""
    code = function.file.text
    first = trials.tests(function, [(code, test) for test in tests])
    right = [test for test, verdict in zip(tests, first, strict=True) if passed(verdict)]
    idle = sum("proves_nothing" in verdict.detail for verdict in first)  # they cannot fail
    if not right:
        if idle == len(tests):
            raise RefusedAnswer("checks_nothing", "The tests cannot fail, whatever the code gives.")
        raise RefusedAnswer("tests_fail", f"No test passes on the code: {_why(first)}.")
    other = rewritten(function)
    again = trials.tests(function, [pair for test in right for pair in ((code, test), (other, test))])
    steady = [test for number, test in enumerate(right) if all(map(passed, again[2 * number : 2 * number + 2]))]
    if not steady:
        raise RefusedAnswer(
            "unsteady", "The tests pass by luck, or look at the text of the code and not at what it does."
        )
    found = trials.tests(function, [(bug, test) for test in steady for bug in bugs])
    by_test = [found[number * len(bugs) : (number + 1) * len(bugs)] for number in range(len(steady))]
    kept = tuple(test for test, row in zip(steady, by_test, strict=True) if any(map(claims_failed, row)))
    if not kept:
        raise RefusedAnswer(
            "checks_nothing",
            f"No claim of the tests fails on any of {len(bugs)} mutants of the code: they check too little.",
        )
    finds = sum(any(killed(row[number]) for row in by_test) for number in range(len(bugs)))
    return Judged(
        kept, Score(finds, len(bugs)), _left_out(len(tests), len(right) + idle, len(steady) + idle, len(kept))
    )


def _left_out(written: int, right: int, steady: int, kept: int) -> tuple[str, ...]:
    """What was left out, in words."""
    counts = {
        "fail on the code": written - right,
        "do not pass each time": right - steady,
        "check nothing that a mutant changes": steady - kept,
    }
    return tuple(f"{count} of {written} tests left out: they {why}" for why, count in counts.items() if count)


def _why(verdicts: Sequence[Verdict]) -> str:
    """The most telling reasons, each once."""
    reasons = dict.fromkeys(f"{verdict.detail or verdict.why}" for verdict in verdicts)
    return "; ".join(list(reasons)[:3])[:300]
