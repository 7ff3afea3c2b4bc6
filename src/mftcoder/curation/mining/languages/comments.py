"""The comment that documents a function: where it is, and what it says without its marks."""

import re
import textwrap

from mftcoder.curation.mining.languages.grammars import COMMENTS, Grammar
from mftcoder.curation.syntax import Node

_DIRECTIVE = re.compile(r"\s*//(\s*\+build|go:|line\b|nolint|export\b|\s*(NOLINT|clang-format|TODO|FIXME))")
_CODE = re.compile(r"[;{}]\s*$")
_MARKS = re.compile(r"^\s*//[/!]?<? ?|^\s*\*(?!/) ?")


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
