"""Negative controls of tests in Python: the same tests, but one claim expects another value.

A claim is an assert about the answer. The expected value is changed, never the arguments of the call. Tests that do not reach the
changed claim fail at their end, so a control that proves nothing does not accuse the answer.
"""

import ast
import builtins
import copy
import functools
import warnings
from collections.abc import Iterator
from typing import Any

from mftcoder.execution.python.judge import LIBRARY

_REACHED = "mft_reached"


def count_claims(tests: str) -> int:
    """The number of claims that can be changed."""
    return len(_claims(tests)[1])


@functools.lru_cache(maxsize=512)
def changed(tests: str, claim: int, direction: int) -> str:
    """`assert f(1) == 2` -> `assert f(1) == -1000000000000000002`, for one claim. `direction`: -1 smaller, 1 larger."""
    known, claims = _claims(tests)
    tree = _Change(claims[claim], direction, _names_of_tests(known)).visit(copy.deepcopy(known))
    tree.body.insert(_after_future_imports(tree), ast.parse(f"{_REACHED} = []").body[0])
    tree.body.append(ast.parse(f"assert {_REACHED}, 'the changed claim was never reached'").body[0])
    return ast.unparse(ast.fix_missing_locations(tree))


@functools.lru_cache(maxsize=512)
def _claims(tests: str) -> tuple[ast.Module, tuple[int, ...]]:
    """The tests, and the positions of their claims among their asserts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(tests)
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    names_something = [any(isinstance(inner, ast.Name) for inner in ast.walk(node.test)) for node in asserts]
    return tree, tuple(number for number, is_claim in enumerate(names_something) if is_claim)  # not `assert True`


def _names_of_tests(tree: ast.Module) -> frozenset[str]:
    """Names that the tests define or import, and builtins: calling these does not ask the answer. A parameter may be the answer."""
    names = set(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return frozenset(names | LIBRARY)


def _after_future_imports(tree: ast.Module) -> int:
    is_future = [isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body]
    return max((number + 1 for number, is_one in enumerate(is_future) if is_one), default=0)


class _Change(ast.NodeTransformer):
    """Changes the assert with this number, in the order of `ast.walk`."""

    def __init__(self, number: int, direction: int, own_names: frozenset[str]):
        self.number, self.direction, self.own_names = number, direction, own_names
        self.chosen: ast.Assert | None = None

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.chosen = [inner for inner in ast.walk(node) if isinstance(inner, ast.Assert)][self.number]
        self.generic_visit(node)
        return node

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt] | ast.Assert:
        if node is not self.chosen:
            return node
        constants = [] if _is_about_inequality(node.test) else list(_expected(node.test, self.own_names))
        for constant in constants:
            constant.value = _other(constant.value, self.direction)
        if not constants:
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return [*ast.parse(f"{_REACHED}.append(1)").body, node]


def _expected(node: ast.AST, own_names: frozenset[str]) -> Iterator[ast.Constant]:
    """The constants of a claim, except arguments of calls of the answer, indexes and parts of f-strings."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, complex, str, bytes, type(None))):
        yield node
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _asks(node.func, own_names)):
        return
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.Subscript) and name == "slice":
            continue
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, ast.AST):
                yield from _expected(inner, own_names)


def _asks(function: ast.AST, own_names: frozenset[str]) -> bool:
    """True if calling this may call the answer: a name, or a method of a name, that is not the tests' own."""
    while isinstance(function, ast.Attribute):
        function = function.value
    return isinstance(function, ast.Name) and function.id not in own_names


def _is_about_inequality(test: ast.expr) -> bool:
    """True for `f(1) != 2`, which holds for most values; such a claim is negated instead."""
    operators = {type(operator) for node in ast.walk(test) if isinstance(node, ast.Compare) for operator in node.ops}
    is_negated = any(isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) for node in ast.walk(test))
    return bool(operators & {ast.NotEq, ast.NotIn, ast.IsNot}) or (
        is_negated and bool(operators & {ast.Eq, ast.In, ast.Is})
    )


def _other(value: Any, direction: int) -> Any:
    """Another value of the same type; a number so far away that no tolerance covers it."""
    if value is None:
        return 0
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + direction * (10**18 + 2 * abs(value))
    if isinstance(value, (float, complex)):
        return value + direction * (1e18 + 2 * abs(value))
    return value + "?" if isinstance(value, str) else value + b"?"
