"""Run an answer and what claims something about it. This is the half of verification that runs in the sandbox, beside the answer.

Tests of a record are as foreign as its answer, so both run here and not in the judge. Every program is a fork of a process that has
imported this file, so it imports the standard library only, and slow modules only where they are used. A check must also fail without
the answer, and with one of two answers that do nothing: otherwise it proves nothing.
"""

import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any

NAME = "answer"
Names = dict[str, Any]
_MOST_CALLS = 1000
_NOT_RUN_BY_A_CALL = 0x20 | 0x80 | 0x200  # flags of generators and coroutines: calling one runs nothing of it


class MissingError(AssertionError):
    """A check used the answer while the answer was taken away. An AssertionError: a check that swallows those cannot fail."""


class Unfit(BaseException):
    """A check cannot be run here; the message is the reason."""


class FailedClaimError(Exception):
    """A claim does not hold. The message says where, `cause` is the exception that shows it."""

    def __init__(self, where: str, cause: BaseException | None = None):
        super().__init__(where)
        self.cause = cause or AssertionError()


class Stub:
    """Stands for a name of the answer while the answer is taken away."""

    def _missing(self, *_: Any, **__: Any) -> Any:
        raise MissingError

    __call__ = __iter__ = __len__ = __getitem__ = __getattr__ = __bool__ = _missing


class Constant:
    """Stands for a function or class of the answer, and gives the same value whatever it is called with."""

    def __init__(self, value: object):
        self._value, self._calls = value, 0

    def __call__(self, *_: Any, **__: Any) -> object:
        self._calls += 1
        if self._calls > _MOST_CALLS:  # perhaps a loop that waits for another value
            raise MissingError
        return self._value


def run(answer: str, checks: dict[str, Any]) -> str:
    """Load the answer, then run the checks on it, the strongest first.

    `passed CHECKS VOID` names the checks that prove something, perhaps none, and those that say nothing with their reasons; `failed
    CHECK ERROR WHERE`; `void REASON` where the answer itself cannot be loaded here.
    """
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    try:
        code = compile(answer, "<answer>", "exec")
    except (SyntaxError, ValueError) as error:
        return f"failed compile {type(error).__name__}"
    try:
        exec(code, vars(module))
    except BaseException as error:
        return _of_loading(error, checks)
    proved, void = ["asserts"] if checks.get("asserts") == "loaded" else [], []
    for name, check in CHECKS.items():
        if name not in checks or checks[name] == "loaded":
            continue
        problem = _problem_of(name, check, checks[name], vars(module))
        if problem.startswith("failed"):
            return problem
        if problem:
            void.append(f"{name}:{problem}")
        else:
            proved.append(name)
    return f"passed {','.join(proved)} {','.join(void)}"


def _of_loading(error: BaseException, checks: dict[str, Any]) -> str:
    if isinstance(error, AssertionError):
        return f"failed {'asserts' if 'asserts' in checks else 'import'} AssertionError"
    if isinstance(error, NameError) and error.name in checks.get("import", ()):
        return "void uses_names_of_the_question"
    has_claims = bool(checks.keys() & CHECKS.keys())
    reason = "exits" if isinstance(error, SystemExit) and not has_claims else excuse(error)
    return f"void {reason}" if reason else f"failed import {type(error).__name__}"


def excuse(error: BaseException) -> str:
    """Why an error says nothing about the answer: it lacks something of the machine. Empty for an error of the answer's own."""
    reasons = {
        ImportError: "missing_module",
        EOFError: "reads_input",
        OSError: "needs_files_or_network",
        MemoryError: "too_much_memory",
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "")


def _problem_of(name: str, check: Callable[[Any, Names], None], data: Any, names: Names) -> str:
    """`failed ...`, or the reason why the check says nothing; empty if it passes with the answer and fails with others."""
    try:
        check(data, names)
    except Unfit as unfit:
        return str(unfit)
    except FailedClaimError as failure:
        return _failed(name, failure.cause, str(failure))
    except BaseException as error:
        return _failed(name, error, "")
    own = {key: value for key, value in names.items() if _belongs_to_the_answer(key, value)}
    if not _fails(check, data, names, dict.fromkeys(own, Stub())):
        return "proves_nothing"
    wrong = ({key: Constant(one) if callable(value) else one for key, value in own.items()} for one in (None, object()))
    return "" if any(_fails(check, data, names, others) for others in wrong) else "proves_nothing"


def _failed(name: str, error: BaseException, where: str) -> str:
    return excuse(error) or f"failed {name} {type(error).__name__} {where}"


def _fails(check: Callable[[Any, Names], None], data: Any, names: Names, others: Names) -> bool:
    """Whether the check fails with others in place of names of the answer."""
    own = {name: names[name] for name in others}
    names.update(others)
    try:
        check(data, names)
    except BaseException:
        return True
    finally:
        names.update(own)
    return False


def _belongs_to_the_answer(name: str, value: Any) -> bool:
    """False for what the answer imports, and for its own tests."""
    if name.startswith("__") or isinstance(value, types.ModuleType) or _is_test(name, value):
        return False
    return not callable(value) or getattr(value, "__module__", NAME) == NAME


def _is_test(name: str, value: Any) -> bool:
    if isinstance(value, types.FunctionType):
        return name.startswith("test")
    unittest = sys.modules.get("unittest")
    return unittest is not None and isinstance(value, type) and issubclass(value, unittest.TestCase)


def check_tests(data: list[Any], names: Names) -> None:
    """Tests beside the answer: their text, the name of the function that a `check(candidate)` takes, and whether they check a value."""
    text, entry_point, claims = data
    own = {**names, "__name__": "tests"}
    exec(_compiled(text), own)
    if isinstance(own.get("check"), types.FunctionType) and entry_point in own:
        own["check"](own[entry_point])
    tests = {name: value for name, value in own.items() if value is not names.get(name)}
    check_asserts("functions" if claims else "claimless", tests)


@cache
def _compiled(tests: str) -> types.CodeType:
    """Compiled once: the tests run with several answers."""
    return compile(tests, "<tests>", "exec")


def check_asserts(data: str, names: Names) -> None:
    """Test functions and test cases among these names. Those that check no value can fail, but prove nothing."""
    for name, value in sorted(names.items()):
        if not _is_test(name, value):
            continue
        if not isinstance(value, types.FunctionType):
            _run_test_case(value)
        elif value.__code__.co_argcount + value.__code__.co_kwonlyargcount - len(value.__defaults__ or ()) > 0:
            raise Unfit("tests_need_fixtures")
        elif value.__code__.co_flags & _NOT_RUN_BY_A_CALL:
            raise Unfit("tests_need_a_loop")
        else:
            _run_test_function(name, value)
    if data == "claimless":
        raise Unfit("proves_nothing")


def _run_test_function(name: str, function: Callable[[], object]) -> None:
    try:
        function()
    except Exception as error:
        raise FailedClaimError(name, error) from error


def _run_test_case(case: Any) -> None:
    import unittest

    errors = []

    class Result(unittest.TestResult):
        def addError(self, test: Any, err: Any) -> None:  # noqa: N802
            errors.append((test.id(), err[1]))

        addFailure = addError  # noqa: N815

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
            if err is not None:
                errors.append((test.id(), err[1]))

    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(Result())
    for name, error in errors:
        raise FailedClaimError(name.rpartition(".")[2], error)


def check_doctests(data: list[list[str]], names: Names) -> None:
    """`[[name, docstring], ...]`, compared as doctest does, but for whitespace."""
    import doctest

    class Runner(doctest.DocTestRunner):
        def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
            raise FailedClaimError(test.name, exc_info[1])

        def report_failure(self, out: Any, test: Any, example: Any, got: str) -> None:
            raise FailedClaimError(test.name)

    for name, docstring in data:
        test = doctest.DocTestParser().get_doctest(docstring, dict(names), name, None, 0)
        Runner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False).run(test, out=lambda text: None)


def check_examples(data: list[list[Any]], names: Names) -> None:
    """`[[call, value, decimals or None], ...]` as texts: a float is compared to as many decimals as the example shows."""
    for call, expected, decimals in data:
        value = eval(call, dict(names))
        if decimals is not None and isinstance(value, float):
            value = round(value, decimals)
        if not value == eval(expected, {}):
            raise FailedClaimError(call)


CHECKS: dict[str, Callable[[Any, Names], None]] = {
    "tests": check_tests,
    "asserts": check_asserts,
    "doctests": check_doctests,
    "examples": check_examples,
}
