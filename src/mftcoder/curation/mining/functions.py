"""The functions of a parsed module as dedented texts: header, docstring, body.

Functions that are too long for a training row, or unfit for other reasons, are counted.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mftcoder.curation.mining.sources import UNKNOWN, SourceModule

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

MAX_SOURCE_CHARS = 1400  # about 450 tokens: prompt and answer, which repeats it, stay near 1,000
MIN_BODY_CHARS = 40


@dataclass(frozen=True)
class MinedFunction:
    """A function or method. Its text is header, docstring and body, each of whole lines. The docstring can be empty.

    In Python the docstring stands between header and body, in other languages it is a comment above the header.
    """

    module: str
    owner: str  # the class it is a method of, or ""
    name: str
    line: int  # in the module, from 1
    header: str  # decorators and signature
    docstring_text: str  # the lines of the file
    docstring: str  # its text without quotes and indentation
    body: str
    language: str = "python"
    license: str = UNKNOWN

    @property
    def source(self) -> str:
        """The whole function, without a line break at its end."""
        return (self.stub + self.body).rstrip("\n")

    @property
    def stub(self) -> str:
        parts = self.header, self.docstring_text
        return "".join(parts if self.language == "python" else reversed(parts))

    @property
    def origin(self) -> str:
        """Its place: `json/decoder.py:343`."""
        return f"{self.module}:{self.line}"


def mine_functions(
    module: SourceModule, skips: Counter[str], longest: int = MAX_SOURCE_CHARS
) -> Iterator[MinedFunction]:
    """The module's functions and methods of at most `longest` characters. `skips` counts the others by reason."""
    lines = module.text.splitlines(keepends=True)
    for owner, node in functions_of(module.tree):
        reason = _unfit(node, lines, longest)
        if reason:
            skips[f"function: {reason}"] += 1
        else:
            yield _mined(module, owner, node, lines)


def functions_of(tree: ast.Module) -> Iterator[tuple[str, FunctionNode]]:
    """`(class name or "", node)` of each top-level function and each method of a top-level class."""
    for node in tree.body:
        if isinstance(node, FunctionNode):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, inner) for inner in node.body if isinstance(inner, FunctionNode))


def text_of(node: FunctionNode, lines: list[str]) -> list[str] | None:
    """The function's lines without its indentation; None if a line (of a string in it) begins left of the function."""
    indent = " " * node.col_offset
    taken = lines[first_line(node) - 1 : node.end_lineno]
    if any(line.strip() and not line.startswith(indent) for line in taken):
        return None
    return [line[len(indent) :] if line.strip() else "\n" for line in taken]


def first_line(node: FunctionNode) -> int:
    """The line of its first decorator or of its `def`."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _unfit(node: FunctionNode, lines: list[str], longest: int) -> str:
    """The reason why the function makes no example, or ""."""
    text = text_of(node, lines)
    if node.name.startswith("__"):
        return "special method"
    if text is None or any("\t" in line for line in text):
        return "indentation that cannot be moved"
    if sum(map(len, text)) > longest:
        return "too long"
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not statements or statements[0].lineno <= node.lineno or len(statements) != len({s.lineno for s in statements}):
        return "no body of its own lines"
    if sum(len(line.strip()) for line in lines[statements[0].lineno - 1 : node.end_lineno]) < MIN_BODY_CHARS:
        return "too short"
    if all(isinstance(statement, ast.Raise | ast.Pass) for statement in statements):
        return "only raises or passes"
    return ""


def _mined(module: SourceModule, owner: str, node: FunctionNode, lines: list[str]) -> MinedFunction:
    text = text_of(node, lines)
    assert text is not None
    start = first_line(node)
    docstring = ast.get_docstring(node) or ""
    documented = ast.get_docstring(node) is not None
    header_end = node.body[0].lineno - start
    body_start = (node.body[0].end_lineno or 0) - start + 1 if documented else header_end
    return MinedFunction(
        module=module.path,
        owner=owner,
        name=node.name,
        line=node.lineno,
        header="".join(text[:header_end]),
        docstring_text="".join(text[header_end:body_start]),
        docstring=docstring,
        body="".join(text[body_start:]),
        license=module.license,
    )
