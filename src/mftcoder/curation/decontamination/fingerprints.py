"""A hash of a Python function that does not see names, docstrings, annotations, comments or layout."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from mftcoder.curation.duplicates.tokens import python_tokens

SMALL = 13
"""A function of fewer tokens may be equal to an unrelated one. `def f(a, b): return a + b` has 10."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function's name, the hash of its code without names, and the number of its tokens."""

    name: str
    hash: int
    tokens: int


def function_fingerprints(tree: ast.Module) -> Iterator[Function]:
    """Each function of a module, methods and inner functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            tokens = python_tokens(node)
            yield Function(node.name, tokens.fingerprint(), len(tokens.hashes))
