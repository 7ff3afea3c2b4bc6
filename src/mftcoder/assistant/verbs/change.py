"""`optimise` and `fix`: another body for one function. Tests that are known to find bugs in it stay green, and nothing else changes."""

from collections.abc import Sequence

from mftcoder.assistant.checks import linter
from mftcoder.assistant.checks.bodies import require_changeable
from mftcoder.assistant.checks.changes import changed_function
from mftcoder.assistant.checks.patches import apply_patch, patch_of
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, find_function, functions_in
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.assistant.suites.exams import EXAMS, head_of
from mftcoder.assistant.suites.inputs import differing
from mftcoder.assistant.suites.trials import Trials, mutants, passed
from mftcoder.assistant.verbs.guard import MOST_LOG, Guard, guarded, of_broken, require_finding, showing
from mftcoder.curation.example import fenced
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.errors import ConfigError

_OPTIMISE = (
    "Rewrite this {title} function so that it does the same faster or more simply. Keep its name, parameters, decorators and docstring. "
    "Answer with one code block that holds this function alone."
)
_FIX = (
    "This {title} function fails with the error below. Correct the function. Keep its name, parameters, decorators and docstring. "
    "Answer with one code block that holds this function alone."
)


def optimise(
    model: Model, function: FunctionText, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Proposal:
    """The function in a better form, as a patch of its file."""
    require_changeable(function)
    before = _findings_of(function, trials)
    if errors := [one for one in before if one.is_error and function.file.language in EXAMS]:
        raise ConfigError(f"{function.file.name}: does not compile as it stands: {errors[0].text}. Correct it first")
    guard = guarded(model, function, trials, tests, rounds=rounds, count=count)
    said = "A linter says:\n" + "\n".join(f"{one.code} {one.message}" for one in before) if before else ""
    title = title_of(function.file.language)
    code = fenced(function.text, function.file.language)
    messages = conversation(f"You improve {title} code.", _OPTIMISE.format(title=title), code, said)

    def judge(reply: Written) -> str:
        return checked_change(function, reply, trials, guard, before)

    what = function.place
    new, refusals = until_accepted(model, messages, judge, rounds=rounds, what=what)
    notes = _linted(function, new, trials, len(before))
    return _proposal("optimise", function, new, guard, notes, (*guard.refusals, *refusals))


def _findings_of(function: FunctionText, trials: Trials) -> list[linter.Finding]:
    return linter.findings(function, function.file.text, function.end - function.first, trials.said)


def _linted(function: FunctionText, new: str, trials: Trials, before: int) -> tuple[str, ...]:
    """How many findings there are before and after."""
    language = function.file.language
    if language not in linter.TOOLS:
        return ()
    if language == "python" and not linter.is_installed():
        return ("ruff is not installed",)
    lines = new.count("\n") - function.file.text.count("\n") + function.end - function.first
    after = linter.findings(function, new, lines, trials.said)
    return (f"findings of {linter.TOOLS[language]}: {before} before, {len(after)} after",)


def with_findings(file: SourceFile, trials: Trials) -> list[FunctionText]:
    """The functions that a linter says something about, and that can be changed. ConfigError if there is none."""
    if file.language not in linter.TOOLS:
        raise ConfigError(
            f"{file.name}: there is no linter for {title_of(file.language)}. Name a function: {file.name}:FUNCTION"
        )
    found = linter.all_findings(file, file.text, trials.said)
    named = [one for one in functions_in(file) if any(one.first < finding.line <= one.end for finding in found)]
    named = [one for one in named if _is_callable(one)]
    if not named:
        tool = linter.TOOLS[file.language]
        is_here = file.language != "python" or linter.is_installed()
        why = f"{tool} finds nothing to change" if is_here else f"{tool} is not installed"
        raise ConfigError(f"{file.name}: {why}. Name a function to ask the model about: {file.name}:FUNCTION")
    return named


def _is_callable(function: FunctionText) -> bool:
    """Whether tests could call it."""
    try:
        if function.file.language in EXAMS:
            head_of(function)
    except ConfigError:
        return False
    return True


def fix(
    model: Model, function: FunctionText, log: str, trials: Trials, tests: SourceFile | None, *, rounds: int, count: int
) -> Proposal:
    """The function without the error of a log, as a patch of its file. A test shows the error before, and passes after."""
    require_changeable(function)
    before = _findings_of(function, trials) if function.file.language in EXAMS else []
    is_broken = any(one.is_error for one in before)
    guard = (
        of_broken(function, tests)
        if is_broken
        else showing(model, function, log, trials, tests, rounds=rounds, count=count)
    )
    title = title_of(function.file.language)
    code = fenced(function.text, function.file.language)
    task = _FIX.format(title=title)
    messages = conversation(f"You correct {title} code.", task, code, f"The error:\n{log[-MOST_LOG:]}")

    def judge(reply: Written) -> str:
        return checked_change(function, reply, trials, guard, None)

    what = function.place
    new, refusals = until_accepted(model, messages, judge, rounds=rounds, what=what)
    notes = (
        _tested_after(function, new, guard, tests, trials, count)
        if is_broken
        else _others(function, new, guard, trials)
    )
    return _proposal("fix", function, new, guard, notes, (*guard.refusals, *refusals))


def _tested_after(
    function: FunctionText, new: str, guard: Guard, tests: SourceFile | None, trials: Trials, count: int
) -> tuple[str, ...]:
    """What the tests find in a function that compiles only now."""
    file = function.file
    fixed = find_function(SourceFile(file.path, file.name, file.language, new, file.bytes_of(new)), function.first + 1)
    assert tests is not None
    return (require_finding(fixed, tests, trials, guard.runs[0], mutants(fixed, count)),)


def _others(function: FunctionText, new: str, guard: Guard, trials: Trials) -> tuple[str, ...]:
    """How many other inputs give another result than before, where that is allowed."""
    if guard.is_strict or guard.reference is None or not guard.reference.calls:
        return ()
    answers = trials.answers(function, new, guard.reference.calls) or []
    other = list(differing(guard.reference, answers))
    return (f"{len(other)} of them give another result than before{f': {other[0]}' if other else ''}",)


def _proposal(
    verb: str, function: FunctionText, new: str, guard: Guard, notes: tuple[str, ...], refusals: tuple[Refusal, ...]
) -> Proposal:
    file = function.file
    patch = patch_of(file, new)
    assert apply_patch(patch, file.name, file.content.decode()) == file.bytes_of(new).decode()
    return Proposal(verb, file, "", patch, new, guard.text, guard.score, (*guard.notes, *notes), refusals)


def checked_change(
    function: FunctionText, reply: Written, trials: Trials, guard: Guard, before: Sequence[linter.Finding] | None
) -> str:
    """The file with the function of a reply.

    RefusedAnswer if a rule is broken, the linter finds more than `before`, a test fails, or another input gives another result.
    """
    code = changed_function(function, reply)
    new = function.placed(code)
    after = linter.findings(function, new, code.count("\n"), trials.said)
    worse = [one for one in after if one.is_error and one.code not in {old.code for old in before or () if old.code}]
    if worse or (before is not None and len(after) > len(before)):
        raise RefusedAnswer("linter", f"The linter finds more than before: {(worse or after)[0].text}.")
    verdicts = trials.tests(function, [(new, test) for test in guard.runs])
    failed = next((one for one in verdicts if not passed(one)), None)
    if failed is not None:
        raise RefusedAnswer("tests_fail", f"A test fails with the new code: {failed.detail or failed.why}.")
    if guard.is_strict and guard.reference is not None and guard.reference.calls:
        answers = trials.answers(function, new, guard.reference.calls) or []
        for call in differing(guard.reference, answers):
            raise RefusedAnswer("other_result", f"{call} gives another result than before.")
    return new
