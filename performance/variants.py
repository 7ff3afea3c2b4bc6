"""Copies of Python functions that only look different: other names, other words, no text. For decontaminate.py and curate.py.

Renaming goes by the syntax tree and takes the docstring along; comments and layout change with it, because the code is written anew.
Rewording is deterministic: sentences in reverse order, synonyms, numbers as words, and a filler wherever five words in a row would have
stayed. What the copies do is unchanged.
"""

import ast
import itertools
import re
from collections.abc import Callable, Iterator

_SYNONYMS = dict(
    pair.split(":")
    for pair in """write:create function:routine return:give returns:gives given:supplied find:determine check:test list:sequence
    array:sequence string:text strings:texts number:value numbers:values integer:int integers:ints positive:above-zero
    negative:below-zero element:item elements:items first:initial last:final all:every each:every sum:total product:multiplication
    largest:biggest smallest:least maximum:biggest minimum:least sorted:ordered sort:order calculate:compute compute:work-out
    count:tally remove:delete convert:turn contains:holds contain:hold character:char characters:chars word:term words:terms
    length:size equal:identical same:identical different:distinct between:among more:further than:over less:below using:with
    create:make implement:build takes:accepts take:accept input:argument output:result should:must if:whenever otherwise:else-case
    only:just empty:blank even:divisible-by-two odd:not-even prime:indivisible reverse:backwards reversed:backwards index:position
    indices:positions letter:char letters:chars digit:figure digits:figures range:interval true:yes false:no two:2 three:3 one:1
    the:that a:some an:some and:plus or:alternatively is:equals are:become not:never in:inside of:from to:towards for:regarding
    with:having that:which this:the-said from:out-of by:through where:wherein when:once you:we your:our it:the-thing""".split()  # noqa: SIM905
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LONGEST_RUN = 5
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PLAIN_WORDS = frozenset({"a", "i", "is", "it", "to", "in", "of", "on", "or", "and", "the"})


def renamed(code: str) -> tuple[str, dict[str, str]]:
    """The code with new names for its functions, parameters and variables, and the old names with the new ones."""
    tree = ast.parse(code)
    names = dict(zip(dict.fromkeys(_bound_names(tree)), _new_names(), strict=False))
    _Renaming(names).visit(tree)
    return ast.unparse(tree), names


def _new_names() -> Iterator[str]:
    parts = ("vek", "lum", "tor", "pim", "sal", "dor", "nif", "gax")
    return (f"{first}_{second}{third}" for third, first, second in itertools.product(parts, repeat=3))


def _bound_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


class _Renaming(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]):
        self.names = names

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "arg", "name"):
            old = getattr(node, field, None)
            if isinstance(old, str) and not isinstance(node, ast.alias):
                setattr(node, field, self.names.get(old, old))
        if isinstance(node, ast.Global | ast.Nonlocal):
            node.names = [self.names.get(name, name) for name in node.names]
        text = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        if text:
            node.body[0].value.value = with_names(text, self.names)
        return super().generic_visit(node)


def with_names(text: str, names: dict[str, str]) -> str:
    """A text about code, with the code's new names. Names that are common English words stay."""
    return re.sub(r"\w+", lambda word: word[0] if word[0] in _PLAIN_WORDS else names.get(word[0], word[0]), text)


def with_docstrings(code: str, change: Callable[[str], str]) -> str:
    """The code, written anew, with each docstring replaced; one that becomes empty is left out."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            changed = change(text)
            if changed:
                node.body[0].value.value = changed
            else:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def prose_and_examples(text: str) -> tuple[str, str]:
    """The sentences of a description, and its examples: doctests and what follows a line that announces examples."""
    lines = text.split("\n")
    starts = [
        number for number, line in enumerate(lines)
        if re.match(r"\s*(>>>|assert |\w+\(.*\)\s*(==|=>|->|➞|=|returns?)|(for )?examples?\b|it must be|note:)", line, re.IGNORECASE)
    ]  # fmt: skip
    start = starts[0] if starts else len(lines)
    return "\n".join(lines[:start]), "\n".join(lines[start:])


def reworded(text: str) -> str:
    """The description in other words; its examples stay."""
    prose, examples = prose_and_examples(text)
    return f"{reworded_prose(prose)}\n{examples}".strip()


def reworded_prose(text: str) -> str:
    """The sentences in reverse order and other words."""
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if sentence]
    return " ".join(_other_words(sentence) for sentence in reversed(sentences))


def _other_words(sentence: str) -> str:
    found: list[str] = []
    unchanged = 0
    for word in re.findall(r"\w+|[^\w\s]+", sentence):
        lowered = word.lower()
        other = _SYNONYMS.get(lowered, _NUMBERS[int(word)] if word.isdigit() and int(word) <= 10 else lowered)
        unchanged = 0 if other != lowered else unchanged + len(re.findall(r"\w+", word))
        found.append(other)
        if unchanged >= _LONGEST_RUN:
            found.append("simply")
            unchanged = 0
    return " ".join(found)
