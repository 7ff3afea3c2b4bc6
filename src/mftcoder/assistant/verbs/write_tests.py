"""`test`: tests of a function that pass on it, and of which each fails on at least one mutant of it."""

from dataclasses import dataclass, replace
from keyword import iskeyword

from mftcoder.assistant.checks.replies import code_of
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.assistant.suites.examples import is_exported
from mftcoder.assistant.suites.exams import EXAMS
from mftcoder.assistant.suites.suite import TESTED, suite_of
from mftcoder.assistant.suites.tests import module_of
from mftcoder.assistant.suites.trials import Judged, Trials, judge_tests, mutants, passed, require_loading
from mftcoder.curation.example import fenced
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.errors import ConfigError

_SYSTEM = "You write unit tests for {title}."
_TASKS = {
    "python": (
        "Write tests for {name}. Each test is a function without parameters whose name begins with test_. It calls {call} with plain values and "
        "asserts the exact result, or uses `with pytest.raises(ErrorName):` for an error. Cover usual values, borders and errors. Begin with "
        "`from {module} import {root}`. Answer with one code block."
    ),
    "javascript": (
        "Write tests for {name}. Each is one line: assert.deepStrictEqual({name}(plain values), the exact result), or "
        "assert.throws(() => {name}(plain values), ErrorName) for an error. Write plain values only, no variables and no other code. Cover usual "
        "values, borders and errors. Answer with one code block."
    ),
}
"""By language. {call}, {module} and {root} are those of Python."""
_PAIRS = (
    "Write tests for {name}. Each is one line: {form} Write plain values only, no variables. Cover usual values and borders. Answer with one "
    "code block."
)


@dataclass(frozen=True)
class MadeTests:
    """Accepted tests: as a file, and how they were judged, one by one as they run in the sandbox."""

    text: str
    judged: Judged
    refusals: tuple[Refusal, ...] = ()


def write_tests(model: Model, function: FunctionText, trials: Trials, *, rounds: int, count: int) -> Proposal:
    """The tests as a file, with the share of `count` mutants that fail."""
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    is_missing = function.file.language == "javascript" and not is_exported(function)
    notes = (f"{function.file.name} does not export {function.name}: export it before you run this file",)
    return Proposal(
        "test",
        function.file,
        text=made.text,
        tests=made.text,
        score=made.judged.score.line,
        notes=(*made.judged.notes, *(notes if is_missing else ())),
        refusals=made.refusals,
    )


def make_tests(model: Model, function: FunctionText, trials: Trials, *, rounds: int, count: int) -> MadeTests:
    """Tests that a model wrote, checked. NoAnswerAcceptedError where none holds."""
    if function.file.language == "python" and not all(
        part.isidentifier() and not iskeyword(part) for part in module_of(function).split(".")
    ):
        raise ConfigError(
            f"{function.file.name}: tests cannot import a file of this name. Rename it: letters, digits and _"
        )
    bugs = prepared(function, trials, count)
    made, refusals = until_accepted(
        model,
        _question(function),
        lambda reply: checked_tests(function, reply, trials, bugs),
        rounds=rounds,
        what=function.place,
    )
    return replace(made, refusals=refusals)


def _question(function: FunctionText) -> list[dict[str, str]]:
    root, _, method = function.name.rpartition(".")
    call = f"{root}().{method}" if root else function.name
    language = function.file.language
    if language in EXAMS:
        task = _PAIRS.format(name=function.name, form=EXAMS[language].example.format(name=function.name))
    else:
        names = {"name": function.name, "call": call, "module": module_of(function), "root": root or function.name}
        task = _TASKS[language].format(**names)
    return list(conversation(_SYSTEM.format(title=title_of(language)), task, fenced(function.text, language)))


def require_tested(file: SourceFile, verb: str) -> None:
    """ConfigError for a file in a language whose tests are not run here."""
    if file.language not in TESTED:
        known = ", ".join(map(title_of, TESTED))
        raise ConfigError(
            f"{file.name}: {verb} runs tests, which it does for {known} only; comment, complete and explain take this language"
        )


def prepared(function: FunctionText, trials: Trials, count: int, verb: str = "test") -> list[str]:
    """The mutants. ConfigError for a function that cannot be tested here, in one line."""
    require_tested(function.file, verb)
    require_loading(trials, function)
    bugs = mutants(function, count)
    if not bugs:
        raise ConfigError(f"{function.place}: no mutant can be made of it, so no test could be judged")
    return bugs


def checked_tests(function: FunctionText, reply: Written, trials: Trials, bugs: list[str]) -> MadeTests:
    """The tests of a reply that hold. RefusedAnswer if none does."""
    code, _ = code_of(reply, function.file.language, function.file.text)
    suite = suite_of(function, code)
    judged = judge_tests(trials, function, suite.runs, bugs)
    if not judged.kept:
        raise RefusedAnswer("checks_nothing", "No test is left.")
    [together] = trials.tests(function, [(function.file.text, suite.together(judged.kept))])
    if not passed(together):
        raise RefusedAnswer(
            "not_together", f"Each test passes alone, but not after the others: {together.detail or together.why}."
        )
    return MadeTests(suite.file(judged.kept), judged)
