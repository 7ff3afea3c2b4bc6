"""The text of tests that a model wrote: what they may contain, and how they are taken apart.

These rules give a model a clear reason. They are not what makes tests worth something: running them on mutants is (trials.py).
"""

import ast
import sys
from collections.abc import Iterator, Set
from pathlib import PurePosixPath

from mftcoder.assistant.checks.replies import python_words, refuse_foreign_letters
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.example import parse_python
from mftcoder.registry import words

MOST_TESTS = 12
_ENDS_OR_LOOKS = words(
    "exit quit exec eval compile globals locals vars setattr delattr getattr __import__ open input breakpoint "
    "memoryview __builtins__ __loader__ __spec__"
)
_FORBIDDEN_MODULES = words(
    "builtins ctypes dis faulthandler gc importlib inspect linecache marshal mmap multiprocessing os pdb pkgutil "
    "posix pty random resource runpy secrets select shutil signal site socket subprocess sys threading _thread time "
    "trace tracemalloc types weakref urllib http asyncio atexit code codeop concurrent"
)
_BROAD = frozenset({"AssertionError", "Exception", "BaseException"})
_SWALLOWING = frozenset({"raises", "assertRaises", "assertRaisesRegex", "suppress"})
_OF_HELPERS = frozenset({"classmethod", "staticmethod"})
"""Decorators of methods that prepare or compare, such as setUpClass. Those of a test may keep it from running."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_PYTEST = """\
class pytest:
    class raises:
        def __init__(self, kind, match=None):
            self.kind, self.match, self.value = kind, match, None
        def __enter__(self):
            return self
        def __exit__(self, kind, value, trace):
            import re
            assert kind is not None, "did not raise"
            self.value = value
            return issubclass(kind, self.kind) and (self.match is None or re.search(self.match, str(value)) is not None)
    class approx:
        def __init__(self, expected, rel=1e-6, abs=1e-12):
            self.expected, self.rel, self.abs = expected, rel, abs
        def __eq__(self, other):
            import math
            return math.isclose(self.expected, other, rel_tol=self.rel, abs_tol=self.abs)
"""
"""What tests mostly take from pytest, which the sandbox does not have."""


def single_tests(function: FunctionText, code: str) -> list[str]:
    """Each test with the imports and values that it stands on. RefusedAnswer where a rule is broken."""
    tree = parse_python(code)
    if tree is None:
        raise RefusedAnswer("does_not_parse", "The tests do not parse as Python.")
    refuse_foreign_letters(python_words(code), function.file.text)
    defined = _defined(ast.parse(function.file.text))
    body = list(_without_own_imports(tree.body, function, defined))
    for node in body:
        _check_statement(node, defined)
    target = function.name.split(".")[-1]
    tests = [test for test in map(_as_test, _tests_in(body, target)) if test is not None]
    others = [node for node in body if not _is_test(node) and not isinstance(node, ast.Assert)]
    if not tests:
        raise RefusedAnswer("no_tests", f"No test calls {target} and asserts something about it.")
    return ["\n\n\n".join(map(ast.unparse, [*others, test])) for test in tests[:MOST_TESTS]]


def runnable(test: str) -> str:
    """A test as it runs in the sandbox, where there is no pytest."""
    tree = ast.parse(test)
    uses = any(isinstance(node, ast.Import) and node.names[0].name == "pytest" for node in tree.body)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.Import) and node.names[0].name == "pytest")]
    return f"{_PYTEST if uses else ''}{ast.unparse(tree)}"


def joined(function: FunctionText, tests: list[str]) -> str:
    """The tests as one file, with the import of what they test."""
    seen: dict[str, ast.stmt] = {}
    for test in tests:
        for node in ast.parse(test).body:
            seen.setdefault(ast.unparse(node), node)
    names = {inner.id for node in seen.values() for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    own = sorted(names & _defined(ast.parse(function.file.text)))
    opening = [text for text, node in seen.items() if isinstance(node, ast.Import | ast.ImportFrom)]
    values = [text for text, node in seen.items() if isinstance(node, ast.Assign)]
    rest = [text for text, node in seen.items() if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)]
    imports = [*opening, *([""] if opening else []), f"from {module_of(function)} import {', '.join(own)}"]
    return "\n\n\n".join(["\n".join([*imports, *([""] if values else []), *values]), *_renamed(rest)]) + "\n"


def module_of(function: FunctionText) -> str:
    """The name by which tests import the file: with its packages."""
    path = PurePosixPath(function.file.name)
    parts: list[str] = []
    folder = function.file.path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join([*parts, *([] if path.stem == "__init__" and parts else [path.stem])])


def _renamed(definitions: list[str]) -> Iterator[str]:
    """Two tests of one name would hide each other."""
    taken: set[str] = set()
    for text in definitions:
        node = ast.parse(text).body[0]
        while isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in taken:
            node.name += "_again"
        taken.add(getattr(node, "name", ""))
        yield ast.unparse(node)


def _defined(tree: ast.Module) -> Set[str]:
    """Names that the file defines or imports at its top level."""
    found = set()
    for node in tree.body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def _without_own_imports(body: list[ast.stmt], function: FunctionText, defined: Set[str]) -> Iterator[ast.stmt]:
    """The statements without `from FILE import f`, copies of the code and `unittest.main()`; the names are there anyway."""
    stem = PurePosixPath(function.file.name).stem
    for number, node in enumerate(body):
        if isinstance(node, ast.ImportFrom) and _imports_the_file(node, stem, defined):
            continue
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and node.name in defined:
            continue  # a copy of the code: without it, the tests are about the code itself
        is_docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
            continue
        yield node


def _imports_the_file(node: ast.ImportFrom, stem: str, defined: Set[str]) -> bool:
    """`from FILE import f`, from whatever package; or names of the file from a module that is not Python's own."""
    module = node.module or ""
    if not all(alias.name in defined and not alias.asname for alias in node.names):
        return False
    return bool(node.level) or module.split(".")[-1] == stem or module.split(".")[0] not in sys.stdlib_module_names


def _check_statement(node: ast.stmt, defined: Set[str]) -> None:
    """RefusedAnswer for a statement that tests do not need."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        _check_import(node)
    elif isinstance(node, _FUNCTIONS):
        _check_function(node)
    elif isinstance(node, ast.ClassDef):
        _check_test_case(node)
    elif not isinstance(node, ast.Assert | ast.Assign):
        raise RefusedAnswer("not_a_test", f"A test file holds tests only, not: {ast.unparse(node)[:80]}")
    for inner in ast.walk(node):
        _check_node(inner, defined)


def _check_function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool = False) -> None:
    """RefusedAnswer for a function that only pytest or an event loop could run, or that a decorator may keep from running."""
    is_helper = is_method and not node.name.startswith("test")
    allowed = _OF_HELPERS if is_helper else frozenset()
    if not allowed.issuperset(map(ast.unparse, node.decorator_list)) or isinstance(node, ast.AsyncFunctionDef):
        raise RefusedAnswer("not_a_test", f"{node.name}: decorators and async tests are not run here.")
    given = [*node.args.posonlyargs, *node.args.args]
    by_name = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    wanted = [one.arg for one in given[is_method : len(given) - len(node.args.defaults)]]
    wanted += [one.arg for one, default in by_name if default is None]
    if node.name.startswith("test") and wanted:
        raise RefusedAnswer("not_a_test", f"{node.name}: takes {', '.join(wanted)}. Write tests without parameters.")


def _check_test_case(node: ast.ClassDef) -> None:
    """RefusedAnswer for a class that is no plain test case, and for methods that would not run."""
    plain = any(ast.unparse(base).endswith("TestCase") for base in node.bases)
    if not plain or node.decorator_list or node.keywords:
        raise RefusedAnswer("not_a_test", f"{node.name}: a class must be a plain unittest.TestCase.")
    for method in node.body:
        if isinstance(method, _FUNCTIONS):
            _check_function(method, is_method=True)


def _check_import(node: ast.Import | ast.ImportFrom) -> None:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    for name in names:
        root = name.split(".")[0]
        if root in _FORBIDDEN_MODULES or "mock" in name or (isinstance(node, ast.ImportFrom) and _imports_mock(node)):
            raise RefusedAnswer("forbidden_import", f"Tests may not import {name}: they call the function and assert.")
        if root not in sys.stdlib_module_names and root != "pytest":
            raise RefusedAnswer(
                "forbidden_import", f"Tests may not import {name}, which is not in the standard library."
            )
    if any(alias.asname for alias in node.names) and names == ["pytest"]:
        raise RefusedAnswer("forbidden_import", "Import pytest by its own name.")
    if isinstance(node, ast.ImportFrom) and names == ["pytest"]:
        raise RefusedAnswer("forbidden_import", "Write `import pytest`, and `pytest.raises`.")


def _imports_mock(node: ast.ImportFrom) -> bool:
    return any("mock" in alias.name or alias.name == "*" for alias in node.names)


def _check_node(node: ast.AST, defined: Set[str]) -> None:
    """RefusedAnswer for what ends a process, looks at code, swallows a failure, or takes the place of what is tested."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        _check_import(node)
    if isinstance(node, ast.Name) and (node.id in _ENDS_OR_LOOKS or node.id == "SystemExit"):
        raise RefusedAnswer("forbidden_name", f"Tests may not use {node.id}.")
    if isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr not in ("__name__", "__doc__"):
        raise RefusedAnswer("forbidden_name", f"Tests may not look at {node.attr}: they test what the code does.")
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node.id in defined:
        raise RefusedAnswer("replaces_code", f"The tests assign to {node.id}, which the file defines.")
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and node.name in defined:
        raise RefusedAnswer("replaces_code", f"The tests define {node.name} again: they would test their own copy.")
    if isinstance(node, ast.arg) and node.arg in defined:
        raise RefusedAnswer("replaces_code", f"A parameter named {node.arg} hides what is tested.")
    if (
        isinstance(node, ast.Attribute)
        and not isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value) not in ("self", "cls")
    ):
        raise RefusedAnswer("replaces_code", f"The tests set or delete {ast.unparse(node)}.")
    if isinstance(node, ast.ExceptHandler) and (node.type is None or _is_broad(node.type)):
        raise RefusedAnswer("swallows_failures", "An except clause catches AssertionError. Catch one exact exception.")
    if isinstance(node, ast.Call) and _called(node) in _SWALLOWING and any(map(_is_broad, node.args)):
        raise RefusedAnswer("swallows_failures", f"{_called(node)} takes every exception. Name one exact exception.")
    if isinstance(node, ast.Global | ast.Nonlocal | ast.Await | ast.Yield | ast.YieldFrom):
        raise RefusedAnswer("not_a_test", f"Tests do not need {type(node).__name__.lower()}.")


def _is_broad(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id in _BROAD for inner in ast.walk(node))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and node.name.startswith("test"))


def _tests_in(body: list[ast.stmt], target: str) -> Iterator[ast.stmt]:
    """Test functions, test cases and single asserts that name what is tested."""
    for node in body:
        if (_is_test(node) or isinstance(node, ast.Assert)) and _uses(node, target, body):
            yield node


def _uses(node: ast.stmt, target: str, body: list[ast.stmt]) -> bool:
    """Whether it names the target, itself or through a helper of the tests."""
    helpers = {one.name: one for one in body if isinstance(one, ast.FunctionDef) and not _is_test(one)}
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    names |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    through = (inner for name in names & helpers.keys() for inner in ast.walk(helpers[name]))
    return target in names or any(isinstance(inner, ast.Name) and inner.id == target for inner in through)


def _as_test(node: ast.stmt) -> ast.stmt | None:
    """A test function; a single assert becomes one. None for a test that asserts nothing."""
    if isinstance(node, ast.Assert):
        made = ast.parse("def test_values():\n    pass").body[0]
        assert isinstance(made, ast.FunctionDef)
        made.body = [node]
        return made
    return node if any(map(_claims, ast.walk(node))) else None


def _claims(node: ast.AST) -> bool:
    is_call = isinstance(node, ast.Call) and (_called(node).startswith("assert") or _called(node) == "raises")
    return is_call or isinstance(node, ast.Assert | ast.Raise)


def existing_tests(function: FunctionText, text: str) -> str:
    """A user's own test file as it runs in the sandbox. RefusedAnswer if it does not parse."""
    tree = parse_python(text)
    if tree is None:
        raise RefusedAnswer("does_not_parse", "The tests do not parse as Python.")
    tree.body = list(_without_own_imports(tree.body, function, _defined(ast.parse(function.file.text))))
    return runnable(ast.unparse(tree))
