"""`test`: tests of a function that pass on it, and of which each fails on at least one mutant of it."""

from dataclasses import dataclass
from keyword import iskeyword

from mftcoder.assistant.checks.replies import code_of
from mftcoder.assistant.checks.tests import existing_tests, joined, module_of, runnable, single_tests
from mftcoder.assistant.checks.trials import Judged, Trials, judge_tests, mutants, passed, require_loading
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.curation.synthesis.trials import fenced
from mftcoder.errors import ConfigError

_SYSTEM = "You write unit tests for Python."
_TASK = (
    "Write tests for {name}. Each test is a function without parameters whose name begins with test_. It calls {call} with plain values and "
    "asserts the exact result, or uses `with pytest.raises(ErrorName):` for an error. Cover usual values, borders and errors. Begin with "
    "`from {module} import {root}`. Answer with one code block."
)


@dataclass(frozen=True)
class MadeTests:
    """Accepted tests: as a file, one by one as they run in the sandbox, and how they were judged."""

    text: str
    singles: tuple[str, ...]
    judged: Judged
    refusals: tuple[Refusal, ...] = ()


def write_tests(model: Model, function: FunctionText, trials: Trials, *, rounds: int, count: int) -> Proposal:
    """The tests as a file, with the share of `count` mutants that fail."""
    made = make_tests(model, function, trials, rounds=rounds, count=count)
    return Proposal(
        "test",
        function.file,
        text=made.text,
        tests=made.text,
        score=made.judged.score.line,
        notes=made.judged.notes,
        refusals=made.refusals,
    )


def make_tests(model: Model, function: FunctionText, trials: Trials, *, rounds: int, count: int) -> MadeTests:
    """Tests that a model wrote, checked. NoAnswerAcceptedError where none holds."""
    if not all(part.isidentifier() and not iskeyword(part) for part in module_of(function).split(".")):
        raise ConfigError(
            f"{function.file.name}: tests cannot import a file of this name. Rename it: letters, digits and _"
        )
    bugs = prepared(function, trials, count)
    messages = _question(function)

    def judge(reply: Written) -> MadeTests:
        return checked_tests(function, reply, trials, bugs)

    made, refusals = until_accepted(model, messages, judge, rounds=rounds, what=f"{function.file.name}:{function.name}")
    return MadeTests(made.text, made.singles, made.judged, refusals)


def _question(function: FunctionText) -> list[dict[str, str]]:
    root, _, method = function.name.rpartition(".")
    call = f"{root}().{method}" if root else function.name
    task = _TASK.format(name=function.name, call=call, module=module_of(function), root=root or function.name)
    return list(conversation(_SYSTEM, task, fenced(function.text)))


def prepared(function: FunctionText, trials: Trials, count: int) -> list[str]:
    """The mutants. ConfigError for a function that cannot be tested here, in one line."""
    if function.file.language != "python":
        raise ConfigError(
            f"{function.file.name}: tests are written and judged for Python only; comment, complete and explain take this language"
        )
    require_loading(trials, function)
    bugs = mutants(function, count)
    if not bugs:
        raise ConfigError(
            f"{function.file.name}:{function.name}: no mutant can be made of it, so no test could be judged"
        )
    return bugs


def checked_tests(function: FunctionText, reply: Written, trials: Trials, bugs: list[str]) -> MadeTests:
    """The tests of a reply that hold. RefusedAnswer if none does."""
    code, _ = code_of(reply, "python", function.file.text)
    singles = single_tests(function, code)
    by_run = dict(zip(map(runnable, singles), singles, strict=False))
    judged = judge_tests(trials, function, list(by_run), bugs)
    if not judged.kept:
        raise RefusedAnswer("checks_nothing", "No test is left.")
    text = joined(function, [by_run[one] for one in judged.kept])
    [together] = trials.tests([(function.file.text, existing_tests(function, text))], function.name.split(".")[0])
    if not passed(together):
        raise RefusedAnswer(
            "not_together", f"Each test passes alone, but not after the others: {together.detail or together.why}."
        )
    return MadeTests(text, judged.kept, judged)
