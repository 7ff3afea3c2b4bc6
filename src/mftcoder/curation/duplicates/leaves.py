"""The tokens of code in the order of its syntax tree, each with the word whether it is a name that may be another one.

Python is read by its own parser, so that quotes, parentheses and number formats do not show; other languages by tree-sitter. Comments,
docstrings and layout are left out everywhere.
"""

import ast
import builtins
from collections.abc import Iterator

from mftcoder.curation.syntax import Node, parse

NAME = "name"
Leaf = tuple[str, str]
"""What a token is, and its text. The text of a NAME only tells it from other names."""
_BUILTINS = frozenset(dir(builtins))
_LEFT_OUT = frozenset({"annotation", "returns", "decorator_list", "type_comment", "type_params", "ctx", "kind"})
_SILENT = (ast.Module, ast.Expr, ast.Name, ast.arg, ast.Constant)
"""Nodes without a token of their own."""
_NAME_FIELDS = frozenset(
    {
        "id",  # Name
        "arg",  # arg, keyword
        "name",  # functions, classes, exception handlers, patterns
        "names",  # global, nonlocal
        "asname",  # import ... as
        "rest",  # patterns
    }
)


def python_leaves(tree: ast.AST) -> Iterator[Leaf]:
    """A tree in prefix notation, without annotations and decorators. A loop, because trees are deeper than Python may recurse."""
    own = frozenset(_bound_names(tree))
    waiting: list[ast.AST | Leaf] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            yield node if node[0] != NAME or node[1] in own or node[1] not in _BUILTINS else ("builtin", node[1])
            continue
        shape, children = _opened(node)
        if not isinstance(node, _SILENT):
            yield shape, ""
        waiting += reversed(children)


def _bound_names(tree: ast.AST) -> Iterator[str]:
    """A parameter that is called `list` is no builtin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _opened(node: ast.AST) -> tuple[str, list[ast.AST | Leaf]]:
    """The node's class with the lengths of its lists, and what is in it."""
    shape = [type(node).__name__]
    children: list[ast.AST | Leaf] = []
    for field in node._fields:
        if field in _LEFT_OUT:
            continue
        value = getattr(node, field, None)
        if field == "body" and isinstance(value, list):
            value = _without_docstring(node, value)
        if isinstance(value, list):
            shape.append(str(len(value)))
        elif value is None and not isinstance(node, ast.Constant):
            shape.append("-")
            continue
        items = value if isinstance(value, list) else [value]
        children += [item if isinstance(item, ast.AST) else _leaf(node, field, item) for item in items]
    return " ".join(shape), children


def _leaf(node: ast.AST, field: str, value: object) -> Leaf:
    is_imported = isinstance(node, ast.alias) and field == "name"
    if isinstance(value, str) and field in _NAME_FIELDS and not is_imported:
        return NAME, value
    return field, hex(value) if type(value) is int else repr(value)  # repr refuses an int of more than 4,300 digits


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    documented = isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    if not documented or not body or not isinstance(body[0], ast.Expr) or not isinstance(body[0].value, ast.Constant):
        return body
    return (
        body[1:] or body if isinstance(body[0].value.value, str) else body
    )  # a docstring alone is all that there is to compare


_ONE_TOKEN = frozenset({"string", "string_literal", "raw_string_literal", "interpreted_string_literal", "char_literal"})
"""Nodes that are taken as they are written. Their parts would tell the same literal in many tokens."""
_BEFORE_AN_ATTRIBUTE = frozenset({".", "?.", "->", "::"})
_OPTIONAL = frozenset({",", ";"})
"""What formatters add and leave out."""


def syntax_leaves(code: str, language: str) -> list[Leaf] | None:
    """The leaves of tree-sitter's tree; None for code that it does not read to the end or not without errors."""
    tree = parse(code, language)
    if tree is None or tree.root_node.has_error:
        return None
    written = code.encode(errors="replace")
    leaves: list[Leaf] = []
    before = ""
    for node, field in _lowest_nodes(tree.root_node):
        text = written[node.start_byte : node.end_byte].decode(errors="replace")
        if text not in _OPTIONAL:
            is_name = node.type == "identifier" and field != "macro" and before not in _BEFORE_AN_ATTRIBUTE
            leaves.append((NAME if is_name else node.type, text.strip("'\"") if node.type == "string" else text))
        before = text
    return leaves


def _lowest_nodes(root: Node) -> Iterator[tuple[Node, str | None]]:
    """Tokens without comments, each with its field's name, in the order of the source."""
    cursor = root.walk()
    while True:
        node = cursor.node
        assert node is not None  # a cursor that began at a node stays inside it
        is_comment = "comment" in node.type
        if is_comment or node.type in _ONE_TOKEN or not cursor.goto_first_child():
            if not is_comment:
                yield node, cursor.field_name
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return
