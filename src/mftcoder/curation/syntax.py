"""Code parsed by its language with tree-sitter, and the language of code guessed. What a tree means is left to the callers.

tree-sitter mends what it cannot read, so code without errors here may still not compile: necessary, not sufficient.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from mftcoder.curation.example import MAX_PARSED
from mftcoder.errors import DataError

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Tree
else:
    Language = Node = Tree = Any  # the package is optional

LANGUAGES = ("python", "rust", "go", "java", "cpp", "javascript")
"""Languages with a grammar. Of equally good guesses the first one counts: the grammars at the end accept more."""
_STRETCH = re.compile("[;{}]")
_MOST_ANGLES = 1000
"""Angle brackets without a `;` or brace between them. 10,000 of them take the Java grammar 5 s and 1.2 GB, and both grow with the square."""
_FREE_CALLS, _CALLS_PER_BYTE = 500, 0.1
"""Bound of the parser's work, in calls of 100 operations. Code takes about 0.01 of a call per byte."""


def parse(code: str, language: str) -> Tree | None:
    """The syntax tree of code in one of LANGUAGES; None for code that is too long or takes too much work to parse.

    Offsets in the tree are those of the code's UTF-8 bytes. DataError if tree-sitter is not installed.
    """
    if len(code) > MAX_PARSED or any(stretch.count("<") > _MOST_ANGLES for stretch in _STRETCH.split(code)):
        return None
    from_bytes = code.encode(errors="replace")
    parser = _library().Parser(_grammar(language))
    left = _FREE_CALLS + int(_CALLS_PER_BYTE * len(from_bytes))

    def stops(_offset: int, _has_error: bool) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    try:
        return parser.parse(
            lambda offset, _point: from_bytes[offset : offset + (1 << 16)], encoding="utf8", progress_callback=stops
        )
    except ValueError:  # tree-sitter's answer to a stop; before 0.26.1 it crashes instead
        return None


def require_grammars() -> None:
    """DataError if tree-sitter or a grammar is not installed: before the work, and not in the middle of it."""
    for language in LANGUAGES:
        _grammar(language)


def error_bytes(code: str, language: str) -> int | None:
    """Bytes that the grammar cannot read, one for each missing token; 0 for code that parses, None for code that was not parsed."""
    tree = parse(code, language)
    return None if tree is None else sum(end - start for start, end in error_places(tree.root_node))


def error_places(root: Node) -> Iterator[tuple[int, int]]:
    """The bytes that the grammar cannot read, one for each missing token. A loop, because nodes are as deep as the code is nested."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            yield node.start_byte, max(node.start_byte + 1, node.end_byte)
        elif node.has_error:
            waiting += node.children


def guess_language(code: str) -> str | None:
    """The language of LANGUAGES whose grammar reads most of the code; None for blank code and for code that was not parsed."""
    best = None
    for language in LANGUAGES if code.strip() else ():
        errors = error_bytes(code, language)
        if errors is not None and (best is None or errors < best[0]):
            best = errors, language
        if errors == 0:
            break
    return best and best[1]


@cache
def _library() -> Any:
    return _import("tree_sitter")


@cache
def _grammar(language: str) -> Language:
    return _library().Language(_import(f"tree_sitter_{language}").language())


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"parsing code needs {name.replace('_', '-')}, which is not installed. Install it with: pip install 'mftcoder[curate]'"
        ) from error
