"""`optimise` and `fix`: another body for one function. Tests that are known to find bugs in it stay green, and nothing else changes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.assistant.checks import linter
from mftcoder.assistant.checks.changes import changed_function
from mftcoder.assistant.checks.patches import apply_patch, make_patch
from mftcoder.assistant.checks.replies import code_of
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, functions_in
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.assistant.suites.suite import both, given_run, suite_of
from mftcoder.assistant.suites.tests import module_of
from mftcoder.assistant.suites.trials import Trials, killed, passed
from mftcoder.assistant.verbs.write_tests import make_tests, prepared
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.curation.synthesis.trials import fenced
from mftcoder.errors import ConfigError

MOST_LOG = 4000
_OPTIMISE = (
    "Rewrite this {title} function so that it does the same faster or more simply. Keep its name, parameters, decorators and docstring. "
    "Answer with one code block that holds this function alone."
)
_FIX = (
    "This {title} function fails with the error below. Correct the function. Keep its name, parameters, decorators and docstring. "
    "Answer with one code block that holds this function alone."
)
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
_ERROR = re.compile(r"^(?:E\s+)?([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Iteration))\b(?::|\s*$)")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)|(?:^|[\s(])([^\s()]+\.\w+):(\d+):', re.MULTILINE)


@dataclass(frozen=True)
class Guard:
    """Tests that a change must keep green, as they run and as a file."""

    runs: tuple[str, ...]
    text: str = ""
    """Empty where the tests are the user's own."""
    score: str = ""
    refusals: tuple[Refusal, ...] = ()


def optimise(
    model: Model, function: FunctionText, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Proposal:
    """The function in a better form, as a patch of its file."""
    guard = guarded(model, function, trials, tests, rounds=rounds, count=count)
    before = linter.findings(function, function.file.text, function.end - function.first)
    said = "A linter says:\n" + "\n".join(f"{one.code} {one.message}" for one in before) if before else ""
    title = title_of(function.file.language)
    code = fenced(function.text, function.file.language)
    messages = conversation(f"You improve {title} code.", _OPTIMISE.format(title=title), code, said)

    def judge(reply: Written) -> str:
        return checked_change(function, reply, trials, guard.runs, before)

    what = f"{function.file.name}:{function.name}"
    new, refusals = until_accepted(model, messages, judge, rounds=rounds, what=what)
    after = linter.findings(
        function, new, new.count("\n") - function.file.text.count("\n") + function.end - function.first
    )
    ruff = f"findings of ruff: {len(before)} before, {len(after)} after"
    notes = (ruff if linter.is_installed() else "ruff is not installed",) if title == "Python" else ()
    return _proposal("optimise", function, new, guard, notes, (*guard.refusals, *refusals))


def with_findings(file: SourceFile) -> list[FunctionText]:
    """The functions that a linter says something about. ConfigError if there is none."""
    if file.language != "python":
        raise ConfigError(f"{file.name}: only Python is linted. Name a function: {file.name}:FUNCTION")
    found = linter.all_findings(file.text)
    named = [one for one in functions_in(file) if any(one.first < finding.line <= one.end for finding in found)]
    if not named:
        why = "ruff finds nothing to change" if linter.is_installed() else "ruff is not installed"
        raise ConfigError(f"{file.name}: {why}. Name a function to ask the model about: {file.name}:FUNCTION")
    return named


def fix(
    model: Model, function: FunctionText, log: str, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Proposal:
    """The function without the error of a log, as a patch of its file. A test shows the error before, and passes after."""
    seen, refused = _showing(model, function, log, trials, tests, rounds)
    guard = Guard(seen.runs, seen.text) if tests else _with_regressions(model, function, trials, seen, rounds, count)
    title = title_of(function.file.language)
    code = fenced(function.text, function.file.language)
    task = _FIX.format(title=title)
    messages = conversation(f"You correct {title} code.", task, code, f"The error:\n{log[-MOST_LOG:]}")

    def judge(reply: Written) -> str:
        return checked_change(function, reply, trials, guard.runs, None)

    what = f"{function.file.name}:{function.name}"
    new, refusals = until_accepted(model, messages, judge, rounds=rounds, what=what)
    return _proposal("fix", function, new, guard, (), (*refused, *guard.refusals, *refusals))


def _proposal(
    verb: str, function: FunctionText, new: str, guard: Guard, notes: tuple[str, ...], refusals: tuple[Refusal, ...]
) -> Proposal:
    file = function.file
    patch = make_patch(file.name, file.text, new)
    assert apply_patch(patch, file.name, file.text) == new
    return Proposal(verb, file, "", patch, new, guard.text, guard.score, notes, refusals)


def checked_change(
    function: FunctionText,
    reply: Written,
    trials: Trials,
    tests: Sequence[str],
    before: Sequence[linter.Finding] | None,
) -> str:
    """The file with the function of a reply. RefusedAnswer if a rule is broken, a test fails, or the linter finds more than `before`."""
    code = changed_function(function, reply)
    new = function.placed(code)
    after = linter.findings(function, new, code.count("\n"))
    worse = [one for one in after if one.is_error and one.code not in {old.code for old in before or ()}]
    if worse or (before is not None and len(after) > len(before)):
        raise RefusedAnswer("linter", f"The linter finds more than before: {(worse or after)[0].text}.")
    verdicts = trials.tests(function, [(new, test) for test in tests])
    failed = next((one for one in verdicts if not passed(one)), None)
    if failed is not None:
        raise RefusedAnswer("tests_fail", f"A test fails with the new code: {failed.detail or failed.why}.")
    return new


def guarded(
    model: Model, function: FunctionText, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Guard:
    """The user's tests if they hold and find a mutant, else tests that the model writes."""
    bugs = prepared(function, trials, count)
    if tests is not None:
        run = given_run(function, tests)
        [verdict] = trials.tests(function, [(function.file.text, run)])
        if not passed(verdict):
            raise ConfigError(f"{tests.name}: does not pass on {function.file.name}: {verdict.detail or verdict.why}")
        finds = sum(map(killed, trials.tests(function, [(bug, run) for bug in bugs])))
        if not finds:
            raise ConfigError(
                f"{tests.name}: passes on all of {len(bugs)} mutants of {function.name}; it does not test it"
            )
        return Guard((run,), "", f"{finds} of {len(bugs)} mutants fail")
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    return Guard(made.singles, made.text, made.judged.score.line, made.refusals)


def function_of_log(file: SourceFile, log: str) -> FunctionText:
    """The function of the file in which a traceback ends. ConfigError if none does."""
    stem = file.path.name
    rows = [
        int(found[2] or found[4])
        for found in _FRAME.finditer(log)
        if (found[1] or found[3]).replace("\\", "/").split("/")[-1] == stem
    ]
    functions = functions_in(file)
    for row in reversed(rows):
        for one in functions:
            if one.first < row <= one.end:
                return one
    raise ConfigError(
        f"{file.name}: the log names no line in a function of it. Name the function: {file.name}:FUNCTION"
    )


def _showing(
    model: Model, function: FunctionText, log: str, trials: Trials, tests: SourceFile | None, rounds: int
) -> tuple[Guard, tuple[Refusal, ...]]:
    """Tests that show the error now."""
    prepared(function, trials, 1)
    root, text = function.name.split(".")[0], function.file.text
    if tests is not None:
        run = given_run(function, tests)
        [verdict] = trials.tests(function, [(text, run)])
        if not killed(verdict):
            raise ConfigError(f"{tests.name}: does not fail on {function.file.name}, so it shows no error to fix")
        return Guard((run,)), ()
    error = _error_of(log)
    language = function.file.language
    task = _REPRODUCE[language].format(module=module_of(function), root=root)
    system = f"You write unit tests for {title_of(language)}."
    messages = conversation(system, task, fenced(function.text, language), f"The error:\n{log[-MOST_LOG:]}")

    def judge(reply: Written) -> Guard:
        code, _ = code_of(reply, language, text)
        suite = suite_of(function, code)
        found = trials.tests(function, [(text, one) for one in suite.runs])
        kept = [one for one, verdict in zip(suite.runs, found, strict=True) if verdict.detail.split(" ")[0] == error]
        if not kept:
            raise RefusedAnswer("error_not_shown", f"No test ends with {error} on the code as it is.")
        return Guard(tuple(kept), suite.file(kept))

    return until_accepted(model, messages, judge, rounds=rounds, what=f"{function.file.name}:{function.name}")


def _error_of(log: str) -> str:
    """The name of the error in a log's last lines. ConfigError for a failed assert: only a test says what is right."""
    names = [found[1].rpartition(".")[2] for line in log.splitlines() if (found := _ERROR.match(line.strip()))]
    if not names or names[-1] == "AssertionError":
        what = "a failed assert" if names else "no error such as `ValueError: ...`"
        raise ConfigError(f"--error: the log ends with {what}. Give the test that fails with --tests FILE")
    return names[-1]


def _with_regressions(
    model: Model, function: FunctionText, trials: Trials, seen: Guard, rounds: int, count: int
) -> Guard:
    """The shown error, and tests of what works today: a fix must not break that."""
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    return Guard(
        (*seen.runs, *made.singles), both(function, seen.text, made.text), made.judged.score.line, made.refusals
    )
