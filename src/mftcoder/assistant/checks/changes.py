"""A changed function: the same name and signature, nothing else of the file, and no power that the file did not use before."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping

from mftcoder.assistant.checks.bodies import changed_body
from mftcoder.assistant.checks.comments import examples_of, refuse_lost_docs, refuse_new_directives
from mftcoder.assistant.checks.patches import apply_patch
from mftcoder.assistant.checks.replies import code_of, python_words, refuse_foreign_letters, refuse_hidden
from mftcoder.assistant.checks.state import FunctionNode, outer_writes
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, functions_in
from mftcoder.assistant.model import Written
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.example import parse_python
from mftcoder.curation.mining.functions import first_line, functions_of
from mftcoder.errors import ConfigError
from mftcoder.registry import words

_POWERS = words(
    "exec eval compile __import__ open input globals locals vars setattr delattr breakpoint exit quit __builtins__ "
    "__loader__ __spec__"
)
_FRAMES = frozenset({"gi_frame", "cr_frame", "ag_frame", "tb_frame", "f_back", "f_builtins", "f_globals", "f_locals"})
_HARMLESS_MODULES = words(
    "abc array bisect collections contextlib copy dataclasses datetime decimal enum fractions functools heapq "
    "itertools json math numbers operator re statistics string textwrap typing unicodedata"
)


def changed_function(function: FunctionText, reply: Written) -> str:
    """The function of a reply, dedented: given whole, or as a patch of its file. RefusedAnswer for anything else."""
    file = function.file
    code, kind = code_of(reply, file.language, file.text, diffs=True)
    if kind == "diff":
        code = _from_patch(function, code)
    refuse_hidden(code, file.text)
    if file.language != "python":
        return changed_body(function, code)
    tree = parse_python(code)
    if tree is None:
        raise RefusedAnswer("does_not_parse", "The code does not parse as Python.")
    refuse_foreign_letters(python_words(code), file.text)
    new = _single(tree, function.name)
    old = ast.parse(function.text).body[0]
    assert isinstance(old, FunctionNode)
    if _signature(old) != _signature(new):
        raise RefusedAnswer("other_signature", f"The signature or the decorators of {function.name} changed.")
    docs = ast.get_docstring(old) or "", ast.get_docstring(new) or ""
    refuse_lost_docs(*docs, file.text)
    if examples_of(docs[0]) != examples_of(docs[1]):
        raise RefusedAnswer("new_example", "The docstring has other examples than before. Leave them as they are.")
    if ast.dump(old) == ast.dump(new):
        raise RefusedAnswer("no_change", "The code is the same as before.")
    refuse_new_directives(function.text, code)
    whole = ast.parse(file.text)
    gained = sorted(set(_powers(new, _modules_of(new, whole))) - set(_powers(whole, _modules(whole))))
    if gained:
        raise RefusedAnswer("new_power", f"The code uses {', '.join(gained[:5])}, which the file did not use.")
    _refuse_other_writes(function, old, new, whole)
    _check_file(file, function, code)
    return code


def _single(tree: ast.Module, name: str) -> FunctionNode:
    wanted = name.rpartition(".")[2]
    functions = [node for node in tree.body if isinstance(node, FunctionNode)]
    if not any(node.name == wanted for node in functions):
        raise RefusedAnswer("function_missing", f"The answer does not define {wanted}.")
    if len(tree.body) != 1:
        raise RefusedAnswer(
            "more_than_the_function", f"The answer holds more than {wanted}. Write this function alone."
        )
    return functions[0]


def _signature(node: FunctionNode) -> tuple[str, ...]:
    parts = [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
    return type(node).__name__, node.name, *map(ast.dump, parts)


def _modules(tree: ast.AST) -> dict[str, str]:
    """The modules that a tree imports, by the name that they have in it."""
    return {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }


def _modules_of(function: FunctionNode, whole: ast.Module) -> dict[str, str]:
    """The modules by the names that a function of a file has for them; `""` for names that are its own."""
    taken = {
        alias.asname or alias.name for one in ast.walk(whole) if isinstance(one, ast.ImportFrom) for alias in one.names
    }
    own = dict.fromkeys(_bound(function) - taken, "")
    parameters = dict.fromkeys((one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)), "")
    return own | _modules(whole) | parameters | _modules(function)


def _bound(tree: ast.AST) -> set[str]:
    """Names that a function binds: parameters and what it assigns to."""
    inside = list(ast.walk(tree))
    names = {one.id for one in inside if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)}
    return names | {one.arg for one in inside if isinstance(one, ast.arg)}


def _powers(tree: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    """Modules, functions of risky modules, and builtins that reach out of a program."""
    owners = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if not _is_harmless(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            names = [alias.name for alias in node.names]
            yield from (f"from {module} import {name}" for name in names if _reaches(module, name))
        elif isinstance(node, ast.Name) and node.id in _POWERS:
            yield node.id
        elif isinstance(node, ast.Name) and modules.get(node.id) and id(node) not in owners:
            yield f"the module {modules[node.id]} as a value"
        elif isinstance(node, ast.Attribute):
            yield from _powers_of_attribute(node, modules)


def _powers_of_attribute(node: ast.Attribute, modules: Mapping[str, str]) -> Iterator[str]:
    if node.attr in _FRAMES or (node.attr.startswith("__") and node.attr.endswith("__")):
        yield node.attr
    elif isinstance(node.value, ast.Name):
        module = modules.get(node.value.id, node.value.id)
        if _is_risky(module) or (_is_harmless(module) and _reaches(module, node.attr)):
            yield f"{module}.{node.attr}"


def _reaches(module: str, name: str) -> bool:
    """Whether a name of a module is taken from a risky one: `contextlib.os` is `os`."""
    return not _is_harmless(module) or (_is_risky(name.lstrip("_")) and (module, name) != ("datetime", "time"))


def _refuse_other_writes(function: FunctionText, old: FunctionNode, new: FunctionNode, whole: ast.Module) -> None:
    """Refuse code that changes an object which the old code leaves alone. A method may set the attributes that its class has."""
    is_method = "." in function.name
    before, after = (outer_writes(node, whole, is_method=is_method) for node in (old, new))
    known = {node.attr for node in ast.walk(whole) if isinstance(node, ast.Attribute)}
    attribute = re.compile(r"self\.(\w+)")
    added = [one for one in sorted(after - before) if not ((own := attribute.match(one)) and own[1] in known)]
    if added:
        raise RefusedAnswer("outside", f"The code changes {', '.join(added[:5])}, which the old code leaves as it is.")


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
    number = next(number for number, node in enumerate(_functions(before)) if first_line(node) == function.first + 1)
    if _elsewhere(before, number) != _elsewhere(after, number):
        raise RefusedAnswer("outside", f"The answer changes more than {function.name}.")


def _elsewhere(tree: ast.Module, number: int) -> str:
    """The tree without the body of the function with this number."""
    functions = _functions(tree)
    if number < len(functions):
        functions[number].body = []
    return ast.dump(tree)


def _functions(tree: ast.Module) -> list[FunctionNode]:
    return [node for _, node in functions_of(tree)]


def _from_patch(function: FunctionText, patch: str) -> str:
    """The function after a patch of its file, if the patch changes nothing else."""
    file = function.file
    new = apply_patch(patch, file.name, file.text)
    same = [one.first for one in functions_in(file) if one.name == function.name]
    changed = SourceFile(file.path, file.name, file.language, new, file.bytes_of(new))
    try:
        found = [one for one in functions_in(changed) if one.name == function.name]
    except ConfigError as error:
        raise RefusedAnswer("does_not_parse", "With this patch the file does not parse.") from error
    if len(found) != len(same):
        raise RefusedAnswer("function_missing", f"With this patch the file has {len(found)} functions {function.name}.")
    code = found[same.index(function.first)].text
    if function.placed(code) != new:
        raise RefusedAnswer("outside", f"The patch changes more than {function.name}.")
    return code
