"""A changed function: the same name and signature, nothing else of the file, and no power that the file did not use before."""

import ast
import sys
from collections.abc import Iterator

from mftcoder.assistant.checks.patches import apply_patch
from mftcoder.assistant.checks.replies import code_of, python_words, refuse_foreign_letters, refuse_hidden
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, functions_in
from mftcoder.assistant.model import Written
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.example import parse_python
from mftcoder.errors import ConfigError

_POWERS = frozenset(
    {
        *("exec", "eval", "compile", "__import__", "open", "input", "globals", "locals", "vars", "setattr", "delattr"),
        *("breakpoint", "exit", "quit", "__builtins__", "__loader__", "__spec__"),
    }
)
_HARMLESS_MODULES = frozenset(
    {
        *("abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum"),
        *("fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "re", "statistics"),
        *("string", "textwrap", "typing", "unicodedata"),
    }
)


def changed_function(function: FunctionText, reply: Written) -> str:
    """The function of a reply, dedented: given whole, or as a patch of its file. RefusedAnswer for anything else."""
    file = function.file
    code, kind = code_of(reply, "python", file.text, diffs=True)
    if kind == "diff":
        code = _from_patch(function, code)
    refuse_hidden(code, file.text)
    tree = parse_python(code)
    if tree is None:
        raise RefusedAnswer("does_not_parse", "The code does not parse as Python.")
    refuse_foreign_letters(python_words(code), file.text)
    new = _single(tree, function.name)
    old = ast.parse(function.text).body[0]
    assert isinstance(old, ast.FunctionDef | ast.AsyncFunctionDef)
    if _signature(old) != _signature(new):
        raise RefusedAnswer("other_signature", f"The signature or the decorators of {function.name} changed.")
    if ast.get_docstring(old) is not None and ast.get_docstring(new) is None:
        raise RefusedAnswer("lost_docstring", "The docstring is missing.")
    if ast.dump(old) == ast.dump(new):
        raise RefusedAnswer("no_change", "The code is the same as before.")
    gained = sorted(set(_powers(new)) - set(_powers(ast.parse(file.text))))
    if gained:
        raise RefusedAnswer("new_power", f"The code uses {', '.join(gained[:5])}, which the file did not use.")
    _check_file(file, function, code)
    return code


def _single(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    wanted = name.rpartition(".")[2]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not any(node.name == wanted for node in functions):
        raise RefusedAnswer("function_missing", f"The answer does not define {wanted}.")
    if len(tree.body) != 1:
        raise RefusedAnswer(
            "more_than_the_function", f"The answer holds more than {wanted}. Write this function alone."
        )
    return functions[0]


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    parts = [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
    return type(node).__name__, node.name, *map(ast.dump, parts)


def _powers(tree: ast.AST) -> Iterator[str]:
    """Modules, functions of risky modules, and builtins that reach out of a program."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            yield from (f"import {alias.name}" for alias in node.names if not _is_harmless(alias.name))
        elif isinstance(node, ast.ImportFrom) and not _is_harmless(node.module or "."):
            yield from (f"from {node.module} import {alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _POWERS:
            yield node.id
        elif isinstance(node, ast.Attribute):
            if node.attr.startswith("__") and node.attr.endswith("__"):
                yield node.attr
            elif isinstance(node.value, ast.Name) and _is_risky(modules.get(node.value.id, node.value.id)):
                yield f"{node.value.id}.{node.attr}"


def _is_harmless(module: str) -> bool:
    return module.split(".")[0] in _HARMLESS_MODULES


def _is_risky(module: str) -> bool:
    root = module.split(".")[0]
    return root in sys.stdlib_module_names and root not in _HARMLESS_MODULES


def _check_file(file: SourceFile, function: FunctionText, code: str) -> None:
    """RefusedAnswer if the file with the new function reads otherwise elsewhere: an encoding line, an open string."""
    new = function.placed(code)
    try:
        before, after = ast.parse(file.content), ast.parse(file.bytes_of(new))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedAnswer("does_not_parse", "With this answer the file does not parse.") from error
    if _elsewhere(before, function.name) != _elsewhere(after, function.name):
        raise RefusedAnswer("outside", f"The answer changes more than {function.name}.")


def _elsewhere(tree: ast.Module, name: str) -> str:
    """The tree without the body of the function."""
    owner, _, wanted = name.rpartition(".")
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name == owner else [node]
        for one in inside:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == wanted:
                one.body = []
    return ast.dump(tree)


def _from_patch(function: FunctionText, patch: str) -> str:
    """The function after a patch of its file, if the patch changes nothing else."""
    file = function.file
    new = apply_patch(patch, file.name, file.text)
    changed = SourceFile(file.path, file.name, file.language, new, file.bytes_of(new))
    try:
        found = [one for one in functions_in(changed) if one.name == function.name]
    except ConfigError as error:
        raise RefusedAnswer("does_not_parse", "With this patch the file does not parse.") from error
    if len(found) != 1:
        raise RefusedAnswer("function_missing", f"With this patch the file has {len(found)} functions {function.name}.")
    if function.placed(found[0].text) != new:
        raise RefusedAnswer("outside", f"The patch changes more than {function.name}.")
    return found[0].text
