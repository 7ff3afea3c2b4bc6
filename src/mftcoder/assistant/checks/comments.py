"""Whether a file with new comments is the same program, and whether its comments are only comments.

A comment can be code: an encoding line, a linter's or a compiler's directive, `\\u000a` in Java, a backslash at the end of a C++ line.
"""

import ast
import doctest
import io
import re
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.grammars import COMMENTS
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node, parse
from mftcoder.registry import words

_ANYWHERE = r".*\b(nosonar|noinspection|nosemgrep|nosec|lgtm|codeql\s*\[)|"
_DIRECTIVES = {
    "python": r"#!|#.*?(coding[:=]|-\*-)|.*\bpylint:|.*#\s*(noqa|nopep8|pragma|pyre-|skipcq|vim?:|%%|///)|"
    r".*#\s*(type|fmt|mypy|pyright|pyrefly|pytype|ty|ruff|isort|yapf|autopep8|flake8|cython|distutils|codespell)\s*:",
    "java": r".*\\u|.*@formatter|[/*\s]*@deprecated\b|.*\bnopmd\b|.*\bcpd-o(n|ff)\b|.*\bcheckstyle\s*[:.]\s*\w",
    "javascript": r"//[#@]|///\s*<|.*@(ts-|(no)?flow\b|jsx|vite-ignore|deno-|jest-|vitest-|nginject|deprecated\b)|.*[#@]__\w|.*\$flow|<!--|.*-->|.*[\u2028\u2029]|"
    r"/\*\s*(eslint|jshint|jslint|globals?|exported)\b|[/*\s]*(eslint|jshint|jslint|tslint|oxlint)(-|:|\s+[\w-]+\s*:)|"
    r".*\b(prettier|biome|deno-lint|deno-fmt|deno-coverage)-ignore|.*\b(istanbul|v8|c8|node:coverage)\s+(ignore|disable)|"
    r".*\b(web|turbo)pack[A-Z]\w*\s*:",
    "go": r"//(go:|line\b|export\b|extern\b|\w+:\w)|/\*line\b|.*\+build|.*\bnolint|.*\bcgo\b|//\s*(unordered )?output:|//\s*deprecated:|"
    r"//\s*code generated\b.*\bdo not edit",
    "rust": r".*(```|~~~)|.*\b(rustfmt|clippy)::|//!|/\*!",
    "cpp": r".*\\\s*$|.*\?\?/|.*\bnolint|.*\b(clang-format|pragma)\b|.*\bcppcheck-|.*\bcoverity\s*\[|.*\b(lcov|gcovr?)_excl|//-v\d|"
    r"/[/*][\s.!]*(else,? |intentional(ly)? )?fall(s |-| )?thr(ough|u)[\s.!]*(-.*)?(\*/)?$",
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def refuse_other_code(before: bytes, after: bytes, language: str) -> None:
    """Refuse a change of the code, of a directive, or one that loses a comment. Both are whole files as they stand on disk."""
    same, comments = (_same_python, _python_comments) if language == "python" else (_same_tokens, _other_comments)
    same(before, after, language)
    old, new = list(comments(before, language)), list(comments(after, language))
    lost = Counter(one.text for one in old) - Counter(one.text for one in new)
    if lost:
        raise RefusedAnswer("lost_comment", f"A comment of the code is missing: {next(iter(lost))[:100]}")
    _refuse_directives(old, new, language)
    if language == "rust" and set(_indented_examples(new)) - set(_indented_examples(old)):
        raise RefusedAnswer("directive", "Indented text of a doc comment is a test in Rust. Indent it less.")
    acts = [[one for one in side if _is_directive(one.text, language)] for side in (old, new)]
    moved = next((one for one, other in zip(*acts, strict=True) if one != other), None)
    if moved:
        raise RefusedAnswer("directive", f"A directive to a tool stands at another place: {moved.text[:100]}")


def words_of_comments(content: bytes, language: str) -> list[str]:
    """The words of all comments and docstrings, in order: lines that are only broken elsewhere say nothing new."""
    comments = _python_comments if language == "python" else _other_comments
    texts = [one.text for one in comments(content, language)]
    return " ".join([*texts, *(_docstrings(ast.parse(content)) if language == "python" else ())]).split()


def refuse_new_directives(before: str, after: str, language: str = "python") -> None:
    """Refuse code with a directive that the old code does not have: it could silence a linter."""
    comments = _python_comments if language == "python" else _other_comments
    old, new = (list(comments(code.encode(), language)) for code in (before, after))
    _refuse_directives(old, new, language)


def _refuse_directives(old: list["_Comment"], new: list["_Comment"], language: str) -> None:
    for text, fault in Counter((one.text, one.fault) for one in new) - Counter((one.text, one.fault) for one in old):
        if fault:
            raise RefusedAnswer("directive", f"{fault}: {text[:100]}")
        if _is_directive(text, language):
            raise RefusedAnswer("directive", f"A comment is a directive to a tool: {text[:100]}")


def _is_directive(comment: str, language: str) -> bool:
    pattern = _ANYWHERE + _DIRECTIVES[language]
    return any(re.match(pattern, line.strip(), re.IGNORECASE) for line in comment.splitlines())


def _indented_examples(comments: Sequence["_Comment"]) -> Iterator["_Comment"]:
    """The doc comments of Rust that begin a block of code: indented, and not in the middle of a paragraph."""
    previous, place = "", -1
    for one in comments:
        for text in _doc_lines(one.text) or [""]:
            line = text.expandtabs(8)
            is_open = one.after != place or not previous.strip() or previous.lstrip().startswith("#")
            if is_open and re.match(r" {5,}\S", line):
                yield one
            previous, place = line, one.after


def _doc_lines(comment: str) -> list[str]:
    """What a doc comment of Rust says, line by line; a blank stands before a line without indentation."""
    if comment.startswith(("///", "//!")):
        return [comment[3:]]
    if not comment.startswith(("/**", "/*!")):
        return []
    first, *lines = comment[3:].removesuffix("*/").split("\n")
    if all(line.lstrip().startswith("*") for line in lines if line.strip()):
        return [first, *(line.lstrip()[1:] for line in lines)]
    return [first, *(f" {line}" for line in textwrap.dedent("\n".join(lines)).split("\n"))]


@dataclass(frozen=True)
class _Comment:
    """A comment and its place in the code: after how many tokens, and whether it shares a line with the last one."""

    text: str
    after: int
    is_trailing: bool
    fault: str = ""
    """Why it is more than a comment at its place."""


def _same_python(before: bytes, after: bytes, _language: str) -> None:
    try:  # from bytes: a line about the encoding is obeyed
        old, new = ast.parse(before), ast.parse(after)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedAnswer("does_not_parse", f"With this answer the file does not parse: {_said(error)}.") from error
    docs = _docstrings(old), _docstrings(new)
    if _dump(old) != _dump(new):
        raise RefusedAnswer("code_changed", "The code was changed. Only a docstring and comments may be added.")
    for one, other in zip(*docs, strict=True):
        refuse_lost_docs(one, other, before.decode(errors="replace"))


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


def refuse_lost_docs(before: str, after: str, code: str) -> None:
    """Docstrings are part of the program where its code reads `__doc__`; their examples are tests, which stay in their order."""
    if before and not after:
        raise RefusedAnswer("lost_docstring", "A docstring of the code is missing.")
    if before != after and reads_docstrings(code):
        raise RefusedAnswer(
            "docstring_is_read", "The file reads docstrings, so another one changes what it does. Write comments only."
        )
    left = iter(examples_of(after))
    lost = [one for one in examples_of(before) if one not in left]
    if lost:
        raise RefusedAnswer("lost_docstring", f"An example of a docstring is missing or changed: {lost[0][:100]}")


def reads_docstrings(code: str) -> bool:
    """Whether Python code names something that reads docstrings: `f.__doc__`, `inspect.getdoc`, docopt, the grammars of PLY and SLY."""
    return re.search(r"__doc__|\bgetdoc\b|\bdocopt\b|\bfrom_callable\b|\b(ply|sly)\b", code) is not None


def examples_of(docstring: str) -> list[str]:
    """The examples of a docstring, each with the output that it expects."""
    try:
        return [example.source + example.want for example in doctest.DocTestParser().get_examples(docstring)]
    except ValueError:  # no right examples: their lines are compared
        return [line.strip() for line in docstring.splitlines() if line.strip().startswith(">>>")]


def added_examples(before: str, after: str) -> bool:
    """Whether a docstring of the new Python text has examples that the old one has not."""
    old, new = (
        Counter(example for text in _docstrings(ast.parse(code)) for example in examples_of(text))
        for code in (before, after)
    )
    return bool(new - old)


_LAYOUT = frozenset(
    {tokenize.ENCODING, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.STRING}
)


def _python_comments(content: bytes, _language: str) -> Iterator[_Comment]:
    tokens = 0  # without strings: a docstring moves nothing
    try:
        for token in tokenize.tokenize(io.BytesIO(content).readline):
            if token.type == tokenize.COMMENT:
                yield _Comment(token.string, tokens, bool(token.line[: token.start[1]].strip()))
            elif token.type not in _LAYOUT:
                tokens += 1
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
    end, line_end = 0, -1
    for node in walk(tree.root_node):
        if node.start_byte < end:  # inside a text
            continue
        is_comment, is_leaf = node.type in COMMENTS, not node.child_count or node.type in TEXTS
        hidden = b"".join(content[end : node.start_byte].split()) if is_leaf or is_comment else b""
        if hidden:  # some grammars have no nodes for some tokens
            shape.append(("", 0, hidden, False))
        if is_leaf or is_comment:
            end = node.end_byte
        if is_comment:
            continue
        text, starts_line = b"", False
        if is_leaf:
            text, starts_line = node.text or b"", line_end < 0 or b"\n" in content[line_end : node.start_byte]
            line_end = node.end_byte
        children = sum(child.type not in COMMENTS for child in node.children) if not is_leaf else 0
        shape.append((node.type, children, text, starts_line))
    return shape


TEXTS = words(
    "string string_literal raw_string_literal interpreted_string_literal char_literal character_literal rune_literal regex "
    "system_lib_string"
)
"""Nodes whose whole text counts: blanks in them are no layout, and what looks like a comment is none."""


def _other_comments(content: bytes, language: str) -> Iterator[_Comment]:
    tree = parse(content.decode(), language)
    leaves = 0
    for node in walk(tree.root_node) if tree is not None else ():
        if node.type in COMMENTS:
            text, line = text_of(node).rstrip("\n"), _line_before(node, content)
            yield _Comment(text, leaves, bool(line), fault_of(node, content, language))
        elif not node.child_count:
            leaves += 1


def _line_before(node: Node, content: bytes) -> bytes:
    return content[content.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte].strip()


def fault_of(comment: Node, content: bytes, language: str) -> str:
    """Why a comment of this code is more than a comment at its place; empty if it is none."""
    text = text_of(comment).rstrip("\n")
    if language == "cpp" and _line_before(comment, content).startswith(b"#") and "\n" in text:
        return "A comment of several lines makes the code behind it a part of a directive"
    if language == "rust" and re.match(r"///(?!/)|//!|/\*!|/\*\*(?![*/])", text):
        follows = comment.next_named_sibling
        while follows is not None and follows.type in COMMENTS:
            follows = follows.next_named_sibling
        if comment.parent is None or comment.parent.type not in _DOCUMENTED_IN_RUST or follows is None:
            return "A doc comment stands where Rust has none"
    return ""


_DOCUMENTED_IN_RUST = words("source_file declaration_list field_declaration_list enum_variant_list")


def refuse_comments_behind(text: str, language: str, first: int, end: int) -> None:
    """Refuse comments in lines `first` to `end` (from 0, without `end`) that stand behind the code there: they are about what follows."""
    tree = parse(text, language)
    nodes = walk(tree.root_node) if tree is not None else ()
    leaves = (node for node in nodes if not node.child_count or node.type in COMMENTS)
    inside = [node for node in leaves if first <= node.start_point.row < end]
    last = max((node.end_point.row for node in inside if node.type not in COMMENTS), default=first)
    for node in inside:
        if node.type in COMMENTS and node.start_point.row > last:
            raise RefusedAnswer("outside", f"A comment stands behind the function: {text_of(node)[:100]}")


def comments_in(content: bytes, language: str) -> Iterator[Node]:
    """The comments of code, which may be broken."""
    tree = parse(content.decode(), language)
    return (node for node in walk(tree.root_node) if node.type in COMMENTS) if tree is not None else iter(())


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
