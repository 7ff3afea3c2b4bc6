"""Tests as a whole, by language: the single tests as they run in the sandbox, and the file that a user gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.suites.examples import examples, test_file
from mftcoder.assistant.suites.exams import EXAMS, file_of, pairs, pairs_of_runs
from mftcoder.assistant.suites.tests import existing_tests, joined, runnable, single_tests
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import parse
from mftcoder.errors import ConfigError


@dataclass(frozen=True)
class Suite:
    """Tests of one function."""

    runs: tuple[str, ...]  # the single tests as they run
    file: Callable[[Sequence[str]], str]  # some of the tests as a file
    together: Callable[[Sequence[str]], str] = "\n".join  # some of the tests as one run


def suite_of(function: FunctionText, code: str) -> Suite:
    """The tests in code that a model wrote. RefusedAnswer if a rule is broken."""
    return _SUITES[function.file.language](function, code)


def given_run(function: FunctionText, tests: SourceFile) -> str:
    """A user's own tests as one run. ConfigError if they cannot be read."""
    if tests.language != function.file.language:
        raise ConfigError(f"{tests.name}: is not in the language of {function.file.name}")
    try:
        return _TOGETHER[tests.language](function, tests.text)
    except RefusedAnswer as error:
        raise ConfigError(f"{tests.name}: {error.why}") from error


def both(function: FunctionText, first: tuple[str, Sequence[str]], second: tuple[str, Sequence[str]]) -> str:
    """Two files of tests as one, each with its runs."""
    language, texts = function.file.language, (first[0], second[0])
    if language == "python":
        return "\n\n".join(texts)
    if language in EXAMS:
        runs = dict.fromkeys([*first[1], *second[1]])
        return file_of(function, pairs_of_runs("\n".join(runs)))
    return test_file(function, list(dict.fromkeys(one for text in texts for one in examples(function, text))))


def calls_of(function: FunctionText, runs: Sequence[str]) -> list[str]:
    """The calls that tests make, in languages whose tests are comparisons of calls."""
    text = "\n".join(runs)
    if function.file.language in EXAMS:
        return list(dict.fromkeys(pair.call for pair in pairs_of_runs(text)))
    tree = parse(text, "javascript")
    calls = (node for node in walk(tree.root_node) if node.type == "call_expression") if tree is not None else ()
    return list(
        dict.fromkeys(text_of(one) for one in calls if text_of(one.child_by_field_name("function")) == function.name)
    )


def _of_python(function: FunctionText, code: str) -> Suite:
    singles = single_tests(function, code)
    by_run = dict(zip(map(runnable, singles), singles, strict=False))

    def file(kept: Sequence[str]) -> str:
        return joined(function, [by_run[one] for one in kept])

    return Suite(tuple(by_run), file, lambda kept: existing_tests(function, file(kept)))


def _of_javascript(function: FunctionText, code: str) -> Suite:
    by_run = {one.check: one for one in examples(function, code)}
    return Suite(tuple(by_run), lambda kept: test_file(function, [by_run[one] for one in kept]))


def _of_exam(function: FunctionText, code: str) -> Suite:
    by_run = {one.run: one for one in pairs(function, code)}
    return Suite(tuple(by_run), lambda kept: file_of(function, [by_run[one] for one in kept]))


_SUITES: Mapping[str, Callable[[FunctionText, str], Suite]] = {
    "python": _of_python,
    "javascript": _of_javascript,
    **dict.fromkeys(EXAMS, _of_exam),
}
_TOGETHER: Mapping[str, Callable[[FunctionText, str], str]] = {
    "python": existing_tests,
    "javascript": lambda function, text: "\n".join(one.check for one in examples(function, text)),
    **dict.fromkeys(EXAMS, lambda function, text: "\n".join(one.run for one in pairs(function, text, MOST_GIVEN))),
}
TESTED = tuple(_SUITES)
"""Languages in which tests are written and run."""
MOST_GIVEN = 200
"""Comparisons of a user's tests that run."""
