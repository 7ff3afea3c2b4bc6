"""What of a record can be run: its code, the checks that claim something about it, or the reason why nothing can be run.

Nothing runs here. Python code is parsed to find its tests; other languages are compiled as they stand.
"""

import ast
import doctest
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import orjson

from mftcoder.curation.example import MAX_PARSED, Example, begins_as_python, parse_python
from mftcoder.curation.statistics import language_name
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.examples import examples_in
from mftcoder.curation.verification.verdict import Verdict
from mftcoder.execution.languages import LANGUAGES
from mftcoder.execution.sandbox import Program

TEST_FIELDS = ("tests", "test", "test_list", "test_code", "unit_tests", "assertions")
SETUP_FIELDS = ("test_setup_code", "test_setup", "test_imports")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_CLAIMING = re.compile(r"assert|fail|raises|exit", re.IGNORECASE)
_HARNESS = "mftcoder.curation.verification.harness"
_TESTS = "class Verdict(Exception): pass\nraise Verdict(verify())\n"
"""What the judge runs: it only hands on the text that the harness returns."""
_NAMES = {"javascript": "js"}
"""Fence -> name in `execution.languages`, where they differ."""


@dataclass(frozen=True)
class Run:
    """One program of a record: code in one language, and for Python what is checked on it (see harness.py)."""

    language: str
    code: str
    checks: Mapping[str, Any]

    def program(self) -> Program:
        """The harness with the code and its checks, or code that is compiled only.

        The harness is imported once by the process that all programs are forks of.
        """
        if self.language != "python":
            return Program(self.language, {"candidate": self.code})
        checked = f"run({self.code!r}, {dict(self.checks)!r})"
        verify = f"from {_HARNESS} import run\n\n\ndef verify():\n    return {checked}\n"
        return Program("python", {"candidate": verify, "tests": _TESTS, "entry_point": "verify", "preload": _HARNESS})


@dataclass(frozen=True)
class Planned:
    """The programs of a record, and what is known of it without running one."""

    runs: tuple[Run, ...] = ()
    known: tuple[Verdict, ...] = ()


def plan(example: Example, config: VerifyConfig) -> Planned:
    found = [_planned(example, language, code, config) for language, code in _codes(example, config)]
    runs = tuple(item for item in found if isinstance(item, Run))
    known = tuple(item for item in found if isinstance(item, Verdict))
    return Planned(runs, known if found else (Verdict.not_run("no_code"),))


def _planned(example: Example, language: str, code: str, config: VerifyConfig) -> Run | Verdict:
    if language == "python":
        return _python(example, code, config)
    if language not in LANGUAGES:
        return Verdict.not_run("language_not_run")
    return Run(language, code, {"compile": True}) if "compile" in config.checks else Verdict.not_run("no_check_chosen")


def _codes(example: Example, config: VerifyConfig) -> Iterator[tuple[str, str]]:
    """Language and code: all Python of the answer as one, each other block alone."""
    python = []
    for block in example.blocks:
        name = language_name(block.language)
        if name == "python" or (name == "unnamed" and begins_as_python(block.code)):
            python.append(block.code)
        elif name != "unnamed" and block.code.strip():
            yield _NAMES.get(name, name), block.code
    if not example.blocks and (code := _unfenced(example, config)):
        if config.language not in (None, "python"):
            yield str(config.language), code
        else:
            python.append(code)
    programs = [textwrap.dedent(code) for code in python if not code.lstrip().startswith(">>>")]
    if programs:
        yield "python", "\n".join(programs)


def _unfenced(example: Example, config: VerifyConfig) -> str:
    """The code of an answer without a fence; empty if it seems to be no code."""
    answer = example.answer
    if config.language or example.python_codes:
        return answer
    has_tests = parse_python(tests_of(example, config)[0] or "(") is not None
    if not has_tests or len(answer) > MAX_PARSED:
        return ""
    code = (
        example.question + answer if answer[:1] in (" ", "\t") else answer
    )  # the question may be code that the answer continues
    return code if parse_python(code) is not None else ""


def _python(example: Example, code: str, config: VerifyConfig) -> Run | Verdict:
    if len(code) > MAX_PARSED:
        return Verdict.not_run("too_long")
    tree = parse_python(code)
    if tree is None:
        return Verdict.failed("compile", "SyntaxError") if "compile" in config.checks else Verdict.not_run("broken")
    if any(map(_starts_tests, tree.body)):
        tree.body = [node for node in tree.body if not _starts_tests(node)]
        code = ast.unparse(tree)
    checks = dict(_python_checks(example, tree, config))
    return Run("python", code, checks) if checks else Verdict.not_run("no_check_chosen")


def _python_checks(example: Example, tree: ast.Module, config: VerifyConfig) -> Iterator[tuple[str, Any]]:
    """The chosen checks that the record has, the strongest first, with what they need."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = frozenset(node.name for node in tree.body if isinstance(node, kinds))
    finders: dict[str, Callable[[], Any]] = {
        "tests": lambda: _tests(example, tree, defined, config),
        "asserts": lambda: _asserts_of(tree, defined),
        "doctests": lambda: list(_doctests(tree)),
        "examples": lambda: [] if example.conversation.is_text else examples_in(example.question, defined),
    }
    for name, find in finders.items():
        if name in config.checks and (data := find()):
            yield name, data
    if "import" in config.checks:
        yield "import", sorted(_undefined(tree) & set(_IDENTIFIER.findall(example.question)))


def _tests(example: Example, tree: ast.Module, defined: Set[str], config: VerifyConfig) -> list[Any]:
    tests, entry_point = tests_of(example, config)
    parsed = parse_python(tests) if tests and len(tests) <= MAX_PARSED else None
    if parsed is None:
        return []
    text = _without_imports_of_the_answer(tests, parsed, defined)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [text, entry_point or (functions or [""])[-1], _claims(parsed.body)]


def _undefined(tree: ast.Module) -> set[str]:
    """Names that the code reads and never sets."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - {
        node.id for node in names if not isinstance(node.ctx, ast.Load)
    }


def tests_of(example: Example, config: VerifyConfig) -> tuple[str, str]:
    """The text of the record's tests (empty without any), and the function that they are about, if the record names it."""
    record = orjson.loads(example.line) if example.line else {}
    names = TEST_FIELDS if config.tests == "auto" else (config.tests,)
    tests = next((text for name in names if (text := _text(record.get(name)))), "")
    setup = [text for name in SETUP_FIELDS if (text := _text(record.get(name)))]
    return "\n".join([*setup, tests]) if tests else "", str(record.get("entry_point") or "")


def _text(value: Any) -> str:
    """A text, or a list of texts, also as JSON inside a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return str(value)
    if isinstance(value, list):
        return "\n".join(value) if all(isinstance(item, str) for item in value) else ""
    return value if isinstance(value, str) else ""


def _without_imports_of_the_answer(tests: str, tree: ast.Module, defined: Set[str]) -> str:
    """`from solution import f` is left out where the answer defines f and no such module of Python is meant; so is `unittest.main()`."""
    body = [node for node in tree.body if not _imports_the_answer(node, defined) and not _starts_tests(node)]
    if len(body) == len(tree.body):
        return textwrap.dedent(tests)
    tree.body = body
    return ast.unparse(tree)


def _imports_the_answer(node: ast.stmt, defined: Set[str]) -> bool:
    if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] in sys.stdlib_module_names:
        return False
    return all(alias.name in defined and not alias.asname for alias in node.names)


def _starts_tests(node: ast.stmt) -> bool:
    """Whether the statement is `unittest.main()`, which ends the process. The harness runs test cases without it."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    return ast.unparse(node.value.func) in ("unittest.main", "pytest.main")


def _claims(nodes: Iterable[ast.stmt]) -> bool:
    """Whether the code can fail because of a value: an assert, a raise, or a call such as `self.assertEqual`."""
    return any(_can_claim(inner) for node in nodes for inner in ast.walk(node))


def _can_claim(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = node.func
        return bool(_CLAIMING.search(called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")))
    return isinstance(node, ast.Assert | ast.Raise)


def _asserts_of(tree: ast.Module, defined: Set[str]) -> str:
    """`functions` if the answer has test functions or test cases, `claimless` if these check no value, `loaded` if the answer
    asserts something while it is loaded."""
    if tests := [node for node in tree.body if _is_test(node)]:
        return "functions" if _claims(tests) else "claimless"
    loaded = [node for statement in tree.body if not _is_definition(statement) for node in ast.walk(statement)]
    return "loaded" if any(isinstance(node, ast.Assert) and _calls(node, defined) for node in loaded) else ""


def _is_test(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name.startswith("test")
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("TestCase") for base in node.bases)


def _is_definition(node: ast.stmt) -> bool:
    """Whether the statement runs nothing of its body now: a definition, or the part for `__main__`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    return isinstance(node, ast.If) and any(
        isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test)
    )


def _calls(node: ast.AST, defined: Set[str]) -> bool:
    called = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return any(isinstance(function, ast.Name) and function.id in defined for function in called)


def _doctests(tree: ast.Module) -> Iterator[list[str]]:
    """Name and docstring of what has a doctest with an expected output."""
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
        if docstring and ">>>" in docstring and _has_expected_output(docstring):
            yield [getattr(node, "name", "module"), docstring]


def _has_expected_output(docstring: str) -> bool:
    try:
        return any(example.want for example in doctest.DocTestParser().get_examples(docstring))
    except ValueError:
        return False
