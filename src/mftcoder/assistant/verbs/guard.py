"""Tests that a change must keep green: the user's own, or ones that a model writes. They are known to find bugs in the function."""

import re
from dataclasses import dataclass, replace

from mftcoder.assistant.checks.replies import code_of
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, functions_in
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.assistant.suites.exams import EXAMS
from mftcoder.assistant.suites.inputs import Reference
from mftcoder.assistant.suites.suite import both, calls_of, given_run, suite_of
from mftcoder.assistant.suites.tests import module_of
from mftcoder.assistant.suites.trials import Trials, killed, passed
from mftcoder.assistant.verbs.write_tests import make_tests, prepared
from mftcoder.curation.example import fenced
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.curation.verification.verdict import Verdict
from mftcoder.errors import ConfigError

MOST_LOG = 4000
_REPRODUCE = {
    "python": (
        "This Python function fails with the error below. Write one test function without parameters whose name begins with test_. It "
        "calls the function so that the error happens now, and asserts the result that a correct function gives. Begin with `from "
        "{module} import {root}`. Answer with one code block."
    ),
    "javascript": (
        "This JavaScript function fails with the error below. Write one line: assert.deepStrictEqual({root}(plain values), result). The "
        "call makes the error happen now; the result is what a correct function gives. Answer with one code block."
    ),
}
_REPRODUCE_PAIR = (
    "This {title} function fails with the error below. Write one line of the form {form} with plain values. The call makes the error happen "
    "now; the other value is what a correct function gives. Answer with one code block."
)
_ERROR = re.compile(r"^(?:E\s+)?([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Iteration))\b(?::|\s*$)")
_ERRORS = {
    "go": re.compile(r"^panic: (.+?)(?: \[recovered\])?$", re.MULTILINE),
    "rust": re.compile(r"panicked at (?:'(.+)', |[^\n]*:\n(.+)$)", re.MULTILINE),
    "cpp": re.compile(r"^\s*what\(\):\s*(.+)$", re.MULTILINE),
    "java": re.compile(
        r"^(?:Exception in thread \"[^\"]*\" |Caused by: )?([\w.]+(?:Exception|Error)(?::.*)?)$", re.MULTILINE
    ),
}
"""By language, what a log says when a program fails; its last one counts."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+)|(?:^|[\s(])([^\s()]+\.\w+):(\d+)(?=[:)\s])', re.MULTILINE)


@dataclass(frozen=True)
class Guard:
    """Tests that a change must keep green, as they run and as a file."""

    runs: tuple[str, ...]
    text: str = ""
    """Empty where the tests are the user's own."""
    score: str = ""
    refusals: tuple[Refusal, ...] = ()
    reference: Reference | None = None
    """What the old code gives for other inputs; None where it cannot say what is right."""
    is_strict: bool = True
    """Whether another answer than that of the reference is refused. If not, it is counted."""
    notes: tuple[str, ...] = ()


def guarded(
    model: Model, function: FunctionText, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Guard:
    """The user's tests if they hold and find a mutant, else tests that the model writes; and what the code gives for other inputs."""
    bugs = prepared(function, trials, count, "optimise")
    if tests is not None:
        run = given_run(function, tests)
        [verdict] = trials.tests(function, [(function.file.text, run)])
        if not passed(verdict):
            raise ConfigError(f"{tests.name}: does not pass on {function.file.name}: {verdict.detail or verdict.why}")
        score = require_finding(function, tests, trials, run, bugs)
        return with_reference(Guard((run,), "", score, notes=_given(function, tests, run)), function, trials)
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    guard = Guard(made.judged.kept, made.text, made.judged.score.line, made.refusals)
    return with_reference(guard, function, trials)


def require_finding(function: FunctionText, tests: SourceFile, trials: Trials, run: str, bugs: list[str]) -> str:
    """How many mutants a user's tests find, in words. ConfigError if they find none."""
    finds = sum(map(killed, trials.tests(function, [(bug, run) for bug in bugs])))
    if not finds:
        raise ConfigError(f"{tests.name}: passes on all of {len(bugs)} mutants of {function.name}; it does not test it")
    return f"{finds} of {len(bugs)} mutants fail"


def with_reference(guard: Guard, function: FunctionText, trials: Trials, *, only_values: bool = False) -> Guard:
    """With what the old code gives for other inputs than those of the tests. Python's tests are no calls that could be varied."""
    if function.file.language == "python":
        return guard
    reference = trials.reference(function, calls_of(function, guard.runs))
    kept = reference.only_values() if only_values else reference
    note = (
        f"{len(kept.calls)} other inputs compared with the old code"
        if kept.calls
        else "no other inputs than those of the tests were tried"
    )
    return replace(guard, reference=kept, notes=(*guard.notes, note))


def _given(function: FunctionText, tests: SourceFile, run: str) -> tuple[str, ...]:
    """What is taken of a user's tests, where that is not all."""
    if function.file.language not in EXAMS:
        return ()
    return (f"{len(run.splitlines())} comparisons of {tests.name} run; whatever else it holds does not",)


def function_of_log(file: SourceFile, log: str) -> FunctionText:
    """The function of the file in which a traceback ends. ConfigError if none does."""
    stem = file.path.name
    rows = [
        int(found[2] or found[4])
        for found in _FRAME.finditer(log)
        if (found[1] or found[3]).replace("\\", "/").split("/")[-1] == stem
    ]
    functions = functions_in(file)
    for row in reversed(rows) if file.language == "python" else rows:  # only Python names the innermost call last
        for one in functions:
            if one.first < row <= one.end:
                return one
    raise ConfigError(
        f"{file.name}: the log names no line in a function of it. Name the function: {file.name}:FUNCTION"
    )


def showing(
    model: Model, function: FunctionText, log: str, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Guard:
    """Tests that show the error now, and tests of what works today: a fix must not break that."""
    prepared(function, trials, 1, "fix")
    if tests is not None:
        run = given_run(function, tests)
        [verdict] = trials.tests(function, [(function.file.text, run)])
        if not shows(verdict):
            raise ConfigError(f"{tests.name}: does not fail on {function.file.name}, so it shows no error to fix")
        guard = Guard((run,), notes=_given(function, tests, run), is_strict=False)
        return with_reference(guard, function, trials, only_values=True)
    seen, refused = _shown(model, function, log, trials, rounds)
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    text = both(function, (seen.text, seen.runs), (made.text, made.judged.kept))
    runs, refusals = (*seen.runs, *made.judged.kept), (*refused, *made.refusals)
    return with_reference(Guard(runs, text, made.judged.score.line, refusals), function, trials, only_values=True)


def shows(verdict: Verdict) -> bool:
    """Whether tests fail because of the code: by a claim, an error, or because the code ended its process."""
    is_ended = verdict.why == "tests" and verdict.detail.startswith("the program ended")
    return killed(verdict) or (verdict.outcome == "failed" and is_ended)


def of_broken(function: FunctionText, tests: SourceFile | None) -> Guard:
    """The tests for code that does not compile. ConfigError without tests of the user: nothing shows what the code is for."""
    if tests is None:
        raise ConfigError(
            f"{function.file.name}: does not compile, so nothing shows what {function.name} does today. Give its tests with --tests FILE"
        )
    run = given_run(function, tests)
    return Guard((run,), notes=_given(function, tests, run))


def _shown(
    model: Model, function: FunctionText, log: str, trials: Trials, rounds: int
) -> tuple[Guard, tuple[Refusal, ...]]:
    """Tests of the model that end with the error of the log."""
    root, text, language = function.name.split(".")[0], function.file.text, function.file.language
    error = _error_of(log, language)
    if language in EXAMS:
        form = EXAMS[language].example.format(name=function.name)
        task = _REPRODUCE_PAIR.format(title=title_of(language), form=form)
    else:
        task = _REPRODUCE[language].format(module=module_of(function), root=root)
    system = f"You write unit tests for {title_of(language)}."
    messages = conversation(system, task, fenced(function.text, language), f"The error:\n{log[-MOST_LOG:]}")

    def judge(reply: Written) -> Guard:
        code, _ = code_of(reply, language, text)
        suite = suite_of(function, code)
        found = trials.tests(function, [(text, one) for one in suite.runs])
        kept = [one for one, verdict in zip(suite.runs, found, strict=True) if _is_error(verdict, error, language)]
        if not kept:
            raise RefusedAnswer("error_not_shown", f"No test ends with {error} on the code as it is.")
        return Guard(tuple(kept), suite.file(kept))

    return until_accepted(model, messages, judge, rounds=rounds, what=function.place)


def _is_error(verdict: Verdict, error: str, language: str) -> bool:
    """Whether tests end with the error of the log. Numbers in it depend on the inputs."""
    if language not in EXAMS:
        return verdict.detail.split(" ")[0] == error
    said, wanted = (re.sub(r"\d+", "N", " ".join(re.findall(r"\w+", text))) for text in (verdict.detail, error))
    return shows(verdict) and f" {wanted[:60]}" in f" {said}"


def _error_of(log: str, language: str) -> str:
    """The error of a log's last lines. ConfigError for a failed assert: only a test says what is right."""
    if language in EXAMS:
        found = [next(filter(None, one.groups())) for one in _ERRORS[language].finditer(log)]
        names = [one.strip() for one in found]
    else:
        lines = (_ERROR.match(line.strip()) for line in log.splitlines())
        names = [found[1].rpartition(".")[2] for found in lines if found]
    if not names or re.match(r"AssertionError|java\.lang\.AssertionError|assertion ", names[-1]):
        what = "a failed assert" if names else "no error such as `ValueError: ...`"
        raise ConfigError(f"--error: the log ends with {what}. Give the test that fails with --tests FILE")
    return names[-1]
