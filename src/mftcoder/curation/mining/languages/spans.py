"""Where a function can be cut: its lines, blocks and expressions, as spans of characters. For all six languages."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.languages.grammars import BLOCKS, COMMENTS, STATEMENT_LISTS
from mftcoder.curation.mining.languages.trees import FunctionTree, function_tree
from mftcoder.curation.mining.mutations import Positions
from mftcoder.curation.syntax import Node

MIN_LINE_CHARS = 4  # `pass` is a line to write, `}` is none
EXPRESSION_CHARS = range(4, 81)
_EXPRESSIONS = frozenset({"method_invocation", "array_access", "field_access", "object_creation_expression"})
_PYTHON_EXPRESSIONS = ast.Call | ast.BinOp | ast.Compare | ast.BoolOp | ast.Subscript | ast.IfExp | ast.ListComp

Span = tuple[int, int]


@dataclass(frozen=True)
class Spans:
    """Spans of a function's body, sorted. `starts` are the lines, from 1, on which a statement begins."""

    starts: tuple[int, ...]
    lines: tuple[Span, ...]  # statements that are alone on one line
    blocks: tuple[Span, ...]  # whole lines inside a block of the body
    expressions: tuple[Span, ...]  # of one line


def spans(function: MinedFunction) -> Spans:
    """The spans of `function.source`. All empty if the function does not parse alone."""
    if function.language == "python":
        statements, blocks, expressions = _of_python(function)
    else:
        tree = function_tree(function.source, function.language, function.owner)
        statements, blocks, expressions = _of_tree(tree) if tree else ([], [], [])
    source = function.source
    starts = sorted({source.count("\n", 0, start) + 1 for start, _ in statements})
    alone = (_line_around(source, span) for span in statements)
    lines = {span for span in alone if span and span[1] - span[0] >= MIN_LINE_CHARS}
    inner = {whole for span in blocks if (whole := _whole_lines(source, span))}
    short = {span for span in expressions if span[1] - span[0] in EXPRESSION_CHARS and "\n" not in source[slice(*span)]}
    return Spans(tuple(starts), tuple(sorted(lines)), tuple(sorted(inner)), tuple(sorted(short)))


Found = tuple[list[Span], list[Span], list[Span]]  # statements, the insides of blocks, expressions


def _of_python(function: MinedFunction) -> Found:
    source = function.source
    where, begin = Positions(source), len(function.stub)
    nodes = list(ast.walk(ast.parse(source)))
    stated = [node for node in nodes if isinstance(node, ast.stmt)]
    statements = [where.span(node) for node in stated if where.span(node)[0] >= begin]
    found = (node for node in nodes if isinstance(node, _PYTHON_EXPRESSIONS))
    expressions = [where.span(node) for node in found if where.span(node)[0] >= begin]
    inner = [block for node in nodes for block in _python_blocks(node)]
    blocks = [(where.span(block[0])[0], where.span(block[-1])[1]) for block in inner]
    return statements, [span for span in blocks if span[0] > begin], expressions


def _python_blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a statement inside a function. A decorator is on a line above its statement, so such blocks are left out."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
        return
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            is_elif = name == "orelse" and isinstance(node, ast.If) and isinstance(block[0], ast.If)
            if not is_elif and not getattr(block[0], "decorator_list", ()):
                yield block


def _of_tree(tree: FunctionTree) -> Found:
    body = tree.body
    if body is None:
        return [], [], []
    inside = [node for node in tree.nodes if node.start_byte > body.start_byte and node.end_byte < body.end_byte]
    holders = [body, *inside]
    children = [child for node in holders if node.type in STATEMENT_LISTS for child in node.named_children]
    stated = [node for node in children if node.type not in COMMENTS and node.type != "statement_list"]
    blocks = [node for node in inside if node.type in BLOCKS and node.end_point.row > node.start_point.row + 1]
    expressions = [node for node in inside if _is_expression(node)]
    within = [(start + 1, end - 1) for start, end in map(tree.span, blocks)]
    return list(map(tree.span, stated)), within, list(map(tree.span, expressions))


def _is_expression(node: Node) -> bool:
    return node.type in _EXPRESSIONS or (node.type.endswith("_expression") and node.is_named)


def _line_around(source: str, span: Span) -> Span | None:
    """The line of a statement without its indentation, if nothing else is on it; with the `;` that ends it and a comment behind it."""
    begin, end = source.rfind("\n", 0, span[0]) + 1, source.find("\n", span[1])
    end = len(source) if end < 0 else end
    behind = source[span[1] : end].lstrip("; \t")
    alone = not source[begin : span[0]].strip() and (not behind or behind.startswith(("//", "#", "/*")))
    return (
        (span[0], span[0] + len(source[span[0] : end].rstrip())) if alone and "\n" not in source[slice(*span)] else None
    )


def _whole_lines(source: str, span: Span) -> Span | None:
    """The lines from the first to the last statement of a block, if they share no line with what is around the block."""
    inner = source[slice(*span)]
    start, end = span[0] + len(inner) - len(inner.lstrip()), span[0] + len(inner.rstrip())
    begin = source.rfind("\n", 0, start) + 1
    behind = source[end:].split("\n", 1)[0].rstrip()
    if behind.lstrip().startswith("#"):  # Python's comment behind the last statement
        end, behind = end + len(behind), ""
    return (begin, end) if begin < end and not source[begin:start].strip() and not behind else None
