"""The functions of a file in a language with braces as dedented texts: doc comment, header, body.

Functions that do not parse, are too long for a training row, or are unfit for other reasons, are counted.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mftcoder.curation.mining.functions import MAX_SOURCE_CHARS, MIN_BODY_CHARS, MinedFunction
from mftcoder.curation.mining.languages.grammars import COMMENTS, LANGUAGES, Grammar
from mftcoder.curation.mining.languages.trees import function_tree, text_of, walk
from mftcoder.curation.syntax import Node

if TYPE_CHECKING:
    from mftcoder.curation.mining.sources import SourceModule

_FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
_TEXTS = ("string", "text_block", "template")
_REFUSALS = re.compile(r"\s*(throw\b|panic!?\(|panic\(|todo!|unimplemented!|unreachable!)")
_NAME = re.compile(r"[A-Za-z_$#][\w$]*\Z")
_DIRECTIVE = re.compile(r"\s*//(\s*\+build|go:|line\b|nolint|export\b|\s*(NOLINT|clang-format|TODO|FIXME))")
_CODE = re.compile(r"[;{}]\s*$")
_MARKS = re.compile(r"^\s*//[/!]?<? ?|^\s*\*(?!/) ?")


@dataclass(frozen=True)
class Found:
    """A function in the tree of its file."""

    owner: str  # the class, type or object that it belongs to, or ""
    name: str
    node: Node  # with its wrappers: the template, the export, the declaration
    body: Node


def mine_functions(
    module: "SourceModule", skips: Counter[str], longest: int = MAX_SOURCE_CHARS
) -> Iterator[MinedFunction]:
    """The functions of at most `longest` characters of a file that is not Python. `skips` counts the others by reason."""
    lines = module.text.split("\n")
    for found in found_functions(module.tree.root_node, module.language):
        made = _mined(module, found, lines, longest)
        if isinstance(made, str):
            skips[f"function: {made}"] += 1
        else:
            yield made


def found_functions(root: Node, language: str) -> Iterator[Found]:
    """Functions and methods of a file that have a body, in its order; none inside another function."""
    grammar = LANGUAGES[language]
    waiting: list[tuple[Node, str, Node | None]] = [(root, "", None)]
    while waiting:
        node, owner, outer = waiting.pop()
        found = _function(node, grammar, owner, outer or node) if node.type in grammar.functions else None
        if found:
            yield found
        elif node.type in grammar.classes:
            name = text_of(node.child_by_field_name(grammar.classes[node.type]))
            waiting += [(child, name, None) for child in reversed(node.children)]
        elif node is root or node.type in grammar.containers or node.type in grammar.wrappers:
            wrapper = (outer or node) if node.type in grammar.wrappers else None
            waiting += [(child, owner, wrapper) for child in reversed(node.children) if not _is_test_only(child)]


def _is_test_only(node: Node) -> bool:
    """Whether it is Rust's module of tests: its functions are tests or serve them."""
    before = node.prev_named_sibling if node.type == "mod_item" else None
    return before is not None and before.type == "attribute_item" and "cfg(test)" in text_of(before)


def _function(node: Node, grammar: Grammar, owner: str, outer: Node) -> Found | None:
    """The function that a node defines; None if it defines none, or none with a body in braces."""
    value: Node | None = node
    name = node.child_by_field_name("name")
    if node.type == "variable_declarator":
        alone = node.parent is not None and node.parent.named_child_count == 1
        value = node.child_by_field_name("value") if alone else None
    elif node.type == "assignment_expression":
        target, value = node.child_by_field_name("left"), node.child_by_field_name("right")
        name = target.child_by_field_name("property") if target and target.type == "member_expression" else None
        holder = text_of(target.child_by_field_name("object")) if target else ""
        owner = holder.removesuffix(".prototype") if holder.endswith(".prototype") else owner
    elif node.type == "function_definition":
        name, owner = _declared(node, owner)
    elif grammar.title == "Go" and node.type == "method_declaration":
        # `Buffer` of `(b *Buffer)`
        text = text_of(node.child_by_field_name("receiver"))
        names = re.findall(r"\w+", text.split("[")[0])
        owner = names[-1] if names else ""
    if value is None or (value is not node and value.type not in _FUNCTION_VALUES):
        return None
    body = value.child_by_field_name("body")
    known = name is not None and body is not None and body.child_count > 1 and text_of(body).startswith("{")
    return Found(owner, text_of(name), outer, body) if known and body is not None else None


def _declared(node: Node, owner: str) -> tuple[Node | None, str]:
    """Name and class of a C++ function, from a declarator such as `*A::f(int a)`."""
    declarator = node.child_by_field_name("declarator")
    while declarator is not None and declarator.type != "function_declarator":
        declarator = declarator.child_by_field_name("declarator") or next(iter(declarator.named_children), None)
    name = declarator.child_by_field_name("declarator") if declarator else None
    while name is not None and name.type == "qualified_identifier":
        owner = text_of(name.child_by_field_name("scope"))
        name = name.child_by_field_name("name")
    return name, owner


def _mined(module: "SourceModule", found: Found, lines: list[str], longest: int) -> MinedFunction | str:
    """The function as texts, or the reason why it makes no example."""
    if found.node.has_error:
        return "does not parse"
    if not _NAME.match(found.name) or found.name in (found.owner.split("<")[0], "constructor"):
        return "special method"
    first, last = first_row(found.node), found.node.end_point.row
    docs = doc_rows(found.node, lines, LANGUAGES[module.language], first)
    begin = docs[0] if docs else first
    taken = dedented(found.node, lines[begin : last + 1], lines[first])
    if taken is None:
        return "indentation that cannot be moved"
    if sum(len(line) + 1 for line in taken) > longest:
        return "too long"
    reason = _unfit(found, lines)
    if reason:
        return reason
    head, body_at = first - begin, found.body.start_point.row - begin + 1
    doc = "".join(f"{line}\n" for line in taken[:head])
    made = MinedFunction(
        module=module.path,
        owner=found.owner,
        name=found.name,
        line=first + 1,
        header="".join(f"{line}\n" for line in taken[head:body_at]),
        docstring_text=doc,
        docstring=prose_of(doc),
        body="".join(f"{line}\n" for line in taken[body_at:]),
        language=module.language,
        license=module.license,
    )
    return made if function_tree(made.source, module.language, made.owner) else "does not parse alone"


def first_row(node: Node) -> int:
    """The row on which the function's text begins, with the attributes above it."""
    row, before = node.start_point.row, node.prev_named_sibling
    while before is not None and before.type == "attribute_item" and before.end_point.row >= row - 1:
        row, before = before.start_point.row, before.prev_named_sibling
    return row


def dedented(node: Node, lines: list[str], first: str) -> list[str] | None:
    """The lines without the indentation of the `first`; None if one of them begins left of it or is inside a text."""
    indent = first[: len(first) - len(first.lstrip())]
    if not indent:
        return lines
    if any(line.strip() and not line.startswith(indent) for line in lines):
        return None
    if any(n.end_point.row > n.start_point.row and any(word in n.type for word in _TEXTS) for n in walk(node)):
        return None
    return [line[len(indent) :] if line.strip() else "" for line in lines]


def _unfit(found: Found, lines: list[str]) -> str:
    """The reason why the function's body makes no example, or ""."""
    start, end = found.body.start_point, found.body.end_point
    statements = [node for node in found.body.named_children if node.type not in COMMENTS]
    if end.row < start.row + 2 or not statements:
        return "no body of its own lines"
    after = lines[start.row].encode()[start.column + 1 :].strip()
    before = lines[found.node.start_point.row].encode()[: found.node.start_point.column].strip()
    behind = lines[found.node.end_point.row].encode()[found.node.end_point.column :].strip()
    if (after and not after.startswith((b"//", b"/*"))) or before or behind.strip(b";,"):
        return "no body of its own lines"
    if not lines[end.row].lstrip().startswith("}"):
        return "no body of its own lines"
    inner = lines[start.row + 1 : end.row]
    if sum(len(line.strip()) for line in inner) < MIN_BODY_CHARS:
        return "too short"
    if len(statements) == 1 and _REFUSALS.match(text_of(statements[0])):
        return "only raises or passes"
    return ""


def doc_rows(node: Node, lines: list[str], grammar: Grammar, first: int) -> list[int]:
    """The rows of the comment directly above row `first`, where the function begins; none if it is no documentation."""
    rows: list[int] = []
    before, above = node.prev_sibling, first
    while before is not None and (before.type == "attribute_item" or before.start_point.row >= first):
        before = before.prev_sibling
    while before is not None and before.type in COMMENTS and last_row(before) == above - 1:
        text = lines[before.start_point.row].strip()
        if not _documents(text, grammar) or (rows and text.startswith("/*") != lines[rows[0]].strip().startswith("/*")):
            break
        rows = [*range(before.start_point.row, above), *rows]
        above, before = before.start_point.row, before.prev_sibling
        if text.startswith("/*"):
            break
    plain = rows and lines[rows[0]].strip().startswith("// ")
    return [] if plain and any(_CODE.search(lines[row]) for row in rows) else rows


def last_row(comment: Node) -> int:
    """The last row of a comment. Rust's doc comments end at the start of the next row."""
    end = comment.end_point
    return end.row - 1 if end.column == 0 else end.row


def _documents(line: str, grammar: Grammar) -> bool:
    """Whether a comment that begins with this line documents what follows."""
    return line.startswith(grammar.doc_starts) and not line.startswith("////") and not _DIRECTIVE.match(line)


def prose_of(doc: str) -> str:
    """What a documenting comment says, without its marks."""
    text = doc.strip()
    if text.startswith("/*"):
        text = text[2:].removesuffix("*/").lstrip("*!<")
    lines = [_MARKS.sub("", line).rstrip() for line in text.splitlines()]
    first, *rest = lines or [""]
    return "\n".join([first.strip(), *textwrap.dedent("\n".join(rest)).splitlines()]).strip()
