"""Whether a file with new comments is the same program, and whether its comments are only comments.

A comment can be code: an encoding line, a linter's or a compiler's directive, `\\u000a` in Java, a backslash at the end of a C++ line.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.grammars import COMMENTS
from mftcoder.curation.syntax import parse

if TYPE_CHECKING:
    from tree_sitter import Node

_COMMENT_NODES = COMMENTS | {"html_comment"}
_DIRECTIVES = {
    "python": r"#!|#.*?(coding[:=]|-\*-)|#\s*(type:|noqa|nosec|pragma|fmt:|pylint|mypy|pyright|ruff|isort|yapf|flake8|vim?:)",
    "java": r".*\\u|.*@formatter|//\s*noinspection",
    "javascript": r"//[#@]|.*@ts-|.*\b(eslint|jshint|prettier|istanbul|webpack|c8)\b|<!--|.*-->|.*[\u2028\u2029]",
    "go": r"//(go:|line\b|export\b|extern\b)|.*\+build|.*\bnolint|.*\bcgo\b",
    "rust": r".*```|.*\b(rustfmt|clippy)::",
    "cpp": r".*\\\s*$|.*\?\?/|.*\b(NOLINT|clang-format|pragma)\b",
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def refuse_other_code(before: bytes, after: bytes, language: str) -> None:
    """Refuse a change of the code, of a directive, or one that loses a comment. Both are whole files as they stand on disk."""
    same, comments = (_same_python, _python_comments) if language == "python" else (_same_tokens, _other_comments)
    same(before, after, language)
    old, new = Counter(comments(before, language)), Counter(comments(after, language))
    lost, added = old - new, new - old
    if lost:
        raise RefusedAnswer("lost_comment", f"A comment of the code is missing: {next(iter(lost))[:100]}")
    for comment in added:
        if any(re.match(_DIRECTIVES[language], line.strip(), re.IGNORECASE) for line in comment.splitlines()):
            raise RefusedAnswer("directive", f"A comment is a directive to a tool: {comment[:100]}")


def _same_python(before: bytes, after: bytes, _language: str) -> None:
    try:  # from bytes: a line about the encoding is obeyed
        old, new = ast.parse(before), ast.parse(after)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedAnswer("does_not_parse", f"With this answer the file does not parse: {_said(error)}.") from error
    docs = _docstrings(old), _docstrings(new)
    if _dump(old) != _dump(new):
        raise RefusedAnswer("code_changed", "The code was changed. Only a docstring and comments may be added.")
    _refuse_lost_examples(*docs, reads_docs=b"__doc__" in before)


def _docstrings(tree: ast.Module) -> list[str]:
    """The docstring of each module, class and function in order, `""` without one; it is taken out of the tree."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, _DOCUMENTED):
            continue
        first = node.body[0] if node.body else None
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        text = first.value.value if is_text else None  # type: ignore[union-attr]
        found.append(text if isinstance(text, str) else "")
        if isinstance(text, str):
            del node.body[0]
    return found


def _dump(tree: ast.Module) -> str:
    try:
        return ast.dump(tree)
    except RecursionError as error:
        raise RefusedAnswer("does_not_parse", "The code is nested too deeply.") from error


def _refuse_lost_examples(old: list[str], new: list[str], *, reads_docs: bool) -> None:
    """Docstrings are part of the program where the file reads `__doc__`; their examples are tests."""
    for before, after in zip(old, new, strict=True):
        if before and (not after or (reads_docs and before != after)):
            raise RefusedAnswer("lost_docstring", "A docstring of the code is missing or changed.")
        lost = [line for line in _examples(before) if line not in _examples(after)]
        if lost:
            raise RefusedAnswer("lost_docstring", f"An example of a docstring is missing: {lost[0][:100]}")


def _examples(docstring: str) -> list[str]:
    return [line.strip() for line in docstring.splitlines() if line.strip().startswith(">>>")]


def added_examples(before: str, after: str) -> bool:
    """Whether a docstring of the new Python text has examples that the old one has not."""
    texts = [text for code in (before, after) for text in ["\n".join(_docstrings(ast.parse(code)))]]
    return bool(Counter(_examples(texts[1])) - Counter(_examples(texts[0])))


def _python_comments(content: bytes, _language: str) -> Iterator[str]:
    try:
        for token in tokenize.tokenize(io.BytesIO(content).readline):
            if token.type == tokenize.COMMENT:
                yield token.string
    except (tokenize.TokenError, SyntaxError) as error:
        raise RefusedAnswer("does_not_parse", f"With this answer the file cannot be read: {_said(error)}.") from error


def _same_tokens(before: bytes, after: bytes, language: str) -> None:
    old, new = (_shape(content, language) for content in (before, after))
    if new is None:
        raise RefusedAnswer("does_not_parse", f"With this answer the file does not parse as {language}.")
    if old != new:
        raise RefusedAnswer("code_changed", "The code or its line breaks were changed. Only comments may be added.")


def _shape(content: bytes, language: str) -> list[tuple[str, int, bytes, bool]] | None:
    """Every node but comments: type, children, text of a leaf, and whether a leaf begins a line. None for code with errors."""
    tree = parse(content.decode(), language)
    if tree is None or tree.root_node.has_error:
        return None
    shape: list[tuple[str, int, bytes, bool]] = []
    end = -1
    for node in _nodes(tree.root_node):
        if node.type in _COMMENT_NODES:
            continue
        text, starts_line = b"", False
        if not node.child_count:
            text, starts_line = node.text or b"", end < 0 or b"\n" in content[end : node.start_byte]
            end = node.end_byte
        children = sum(child.type not in _COMMENT_NODES for child in node.children)
        shape.append((node.type, children, text, starts_line))
    return shape


def _other_comments(content: bytes, language: str) -> Iterator[str]:
    tree = parse(content.decode(), language)
    for node in _nodes(tree.root_node) if tree is not None else ():
        if node.type in _COMMENT_NODES:
            text = (node.text or b"").decode()
            if language == "rust" and re.match(r"//[/!]|/\*[*!]", text) and _is_inside(node):
                raise RefusedAnswer("directive", f"A doc comment stands inside the function: {text[:100]}")
            yield text.rstrip("\n")


def _is_inside(node: "Node") -> bool:
    return node.parent is not None and node.parent.type == "block"


def _nodes(root: "Node") -> Iterator["Node"]:
    """All nodes, comments included, nothing below a comment."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if node.type not in _COMMENT_NODES:
            waiting.extend(reversed(node.children))


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
