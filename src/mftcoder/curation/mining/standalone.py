"""Make a program of its own from a module's function: the function with the top-level code that it needs.

Candidates are top-level functions that return a value and take one to four arguments. Whether such a program runs is found out in the
sandbox (recording.py).
"""

import ast
import doctest
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.mutations import mutations
from mftcoder.curation.mining.sources import SourceModule

MAX_ARITY = 4
MAX_CONTEXT_CHARS = 20_000
MAX_MUTANTS = 8
MAX_SEEDS, MAX_LITERALS, MAX_LITERAL_CHARS = 20, 12, 30
CHANGING = frozenset(
    {"random", "secrets", "time", "uuid", "tempfile", "getpass", "platform", "socket", "subprocess", "threading"}
)
"""Modules whose results depend on the clock, on chance or on the machine. Code that uses one has no fixed expected values."""


@dataclass(frozen=True)
class StandaloneFunction:
    """A function, the code of its module that it needs, and values to try it with. All but the first field are Python text."""

    function: MinedFunction
    context: str  # imports, constants, functions and classes that it uses
    arity: int  # number of required arguments
    mutants: tuple[str, ...]
    seeds: tuple[str, ...]  # arguments of calls in its docstring
    literals: tuple[str, ...]  # from the function's own text


def standalone_functions(
    module: SourceModule, functions: Iterable[MinedFunction], skips: Counter[str], seed: int
) -> Iterator[StandaloneFunction]:
    """The functions that can run alone. `skips` counts the others by reason."""
    for function in functions:
        node = ast.parse(function.source).body[0]
        needed = [] if function.owner else _needed(module.tree, function)
        context = _context(module, needed)
        reason = _unfit(function, node, needed, context)
        if reason:
            skips[f"run: {reason}"] += 1
            continue
        assert isinstance(node, ast.FunctionDef)
        mutants = mutations(function.source, random.Random(f"{seed}:mutants:{function.origin}"))
        yield StandaloneFunction(
            function,
            context,
            _arity(node),
            tuple(dict.fromkeys(mutation.source for mutation in itertools.islice(mutants, MAX_MUTANTS))),
            tuple(dict.fromkeys(_seeds(function)))[:MAX_SEEDS],
            tuple(dict.fromkeys(_literals(node)))[:MAX_LITERALS],
        )


def _unfit(function: MinedFunction, node: ast.stmt, needed: list[ast.stmt], context: str) -> str:
    """The reason why the function cannot be tried with plain values, or ""."""
    if function.owner:
        return "a method"
    inside = list(ast.walk(node))
    if not isinstance(node, ast.FunctionDef) or any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in inside):
        return "a generator or a coroutine"
    if not any(isinstance(inner, ast.Return) and inner.value is not None for inner in inside):
        return "returns nothing"
    if not 1 <= _arity(node) <= MAX_ARITY or None in node.args.kw_defaults:
        return "no arguments, more than four, or named ones"
    if len(context) > MAX_CONTEXT_CHARS:
        return "needs too much of its module"
    if CHANGING & _imported([*needed, node]):
        return "depends on the clock, on chance or on the machine"
    return ""


def _needed(tree: ast.Module, function: MinedFunction) -> list[ast.stmt]:
    """The statements that define the names the function uses, and the names that those use, in the module's order."""
    binding: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _bound(statement):
            binding.setdefault(name, []).append(statement)
    own = next(node for node in tree.body if getattr(node, "lineno", 0) == function.line)
    found, todo = {own}, [own]
    while todo:
        for name in {inner.id for inner in ast.walk(todo.pop()) if isinstance(inner, ast.Name)}:
            fresh = [statement for statement in binding.get(name, ()) if statement not in found]
            found.update(fresh)
            todo += fresh
    always = [node for node in tree.body if isinstance(node, ast.ImportFrom) and _is_wide(node)]
    return [
        statement for statement in tree.body if statement is not own and (statement in found or statement in always)
    ]


def _is_wide(node: ast.ImportFrom) -> bool:
    """Whether the statement affects all code after it: `from __future__ import ...` or `from x import *`."""
    return node.module == "__future__" or any(alias.name == "*" for alias in node.names)


def _context(module: SourceModule, needed: list[ast.stmt]) -> str:
    """The text of the statements after the module's own name, so that relative imports and `__name__` mean the same as in the module."""
    lines = module.text.splitlines(keepends=True)
    parts = {True: "", False: ""}
    for node in needed:
        start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        text = "".join(lines[start - 1 : node.end_lineno])
        parts[isinstance(node, ast.ImportFrom) and node.module == "__future__"] += text.rstrip("\n") + "\n"
    stem = module.path.rpartition("/")[2].removesuffix(".py")
    package = ".".join(module.packages)
    name = ".".join([*module.packages, stem]).removesuffix(".__init__")
    return f"{parts[True]}__name__, __package__ = {name!r}, {package!r}\n{parts[False]}"


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement defines, including those in its branches."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    nodes = list(ast.walk(statement))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return names | {(alias.asname or alias.name).split(".")[0] for alias in aliases}


def _imported(nodes: Iterable[ast.stmt]) -> set[str]:
    """The top-level names of imported modules: `os` for `import os.path`."""
    found: set[str] = set()
    for inner in (inner for node in nodes for inner in ast.walk(node)):
        if isinstance(inner, ast.Import):
            found |= {alias.name.split(".")[0] for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            found.add(inner.module.split(".")[0])
    return found


def _arity(node: ast.FunctionDef) -> int:
    """The number of required arguments; 1 if all have defaults."""
    positional = len(node.args.posonlyargs) + len(node.args.args)
    return max(positional - len(node.args.defaults), min(positional, 1))


def _seeds(function: MinedFunction) -> Iterator[str]:
    """The arguments of calls in the docstring's examples, if they are literals."""
    try:
        examples = doctest.DocTestParser().get_examples(function.docstring)
        trees = [ast.parse(example.source) for example in examples]
    except (ValueError, SyntaxError):
        return
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        is_ours = isinstance(call.func, ast.Name) and call.func.id == function.name
        if is_ours and not call.keywords and all(map(_is_literal, call.args)):
            yield ", ".join(map(ast.unparse, call.args))


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _literals(node: ast.FunctionDef) -> Iterator[str]:
    """Short strings and numbers in the function: `if kind == "left"` gives `'left'`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and type(inner.value) in (str, bytes, int):
            text = repr(inner.value)
            if len(text) <= MAX_LITERAL_CHARS:
                yield text
