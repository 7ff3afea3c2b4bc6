"""A hash of a Python function that does not see names, docstrings, annotations, comments or layout."""

import ast
import builtins
from collections.abc import Iterator

import xxhash

_BUILTINS = frozenset(dir(builtins))
LEAST_NODES = 12
"""Nodes of the smallest function that has a fingerprint. Below it unrelated functions are equal: `return a + b`."""


def function_fingerprints(tree: ast.Module) -> Iterator[int]:
    """The hash of each function of a module that is large enough, methods and inner functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            renamed = _Renamer()
            text = renamed.text(node)
            if renamed.nodes >= LEAST_NODES:
                yield xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


class _Renamer:
    """Writes a tree as text, with names numbered in the order in which they appear. Names of builtins and attributes stay."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.nodes = 0

    def text(self, node: ast.AST) -> str:
        self.nodes += 1
        fields = [self._field(node, name) for name in node._fields if name not in _LEFT_OUT]
        return f"{type(node).__name__}({','.join(fields)})"

    def _field(self, node: ast.AST, name: str) -> str:
        value = getattr(node, name, None)
        if isinstance(value, list):
            if name == "body":
                value = _without_docstring(node, value)
            return f"[{','.join(self.text(item) if isinstance(item, ast.AST) else self._leaf(node, name, item) for item in value)}]"
        return self.text(value) if isinstance(value, ast.AST) else self._leaf(node, name, value)

    def _leaf(self, node: ast.AST, name: str, value: object) -> str:
        if isinstance(value, str) and _is_name(node, name) and value not in _BUILTINS:
            return f"v{self.names.setdefault(value, len(self.names))}"
        return repr(value)


_LEFT_OUT = frozenset({"annotation", "returns", "decorator_list", "type_comment", "type_params", "ctx", "kind"})


def _is_name(node: ast.AST, field: str) -> bool:
    if isinstance(node, ast.Name):
        return field == "id"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
        return field == "name"
    return isinstance(node, ast.arg | ast.keyword) and field == "arg"


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    holds_one = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and body
    if not holds_one or not isinstance(body[0], ast.Expr) or not isinstance(body[0].value, ast.Constant):
        return body
    return body[1:] if isinstance(body[0].value.value, str) else body
