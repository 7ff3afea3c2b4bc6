"""A record as the steps of curation see it, and why one was dropped.

Code blocks and syntax trees are found when a rule first asks for them. The rules themselves are left to filters/ and its neighbours.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from mftcoder.data.records.conversation import Conversation

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$", re.MULTILINE)
_PYTHON_NAMES = frozenset({"python", "py", "python3", "python2"})
_PYTHON_START = re.compile(
    r"\s*(?:#[^\n]*\n\s*)*"
    r"(?:def \w+\((?:[^\n]*:[ \t]*(?:#[^\n]*)?)?\r?$|class \w+(?:\([\w., =]*\))?:[ \t]*\r?$|from [\w.]+ import [\w*(]"
    r"|(?P<import>import [\w.]+(?: as \w+)?(?:, ?[\w.]+(?: as \w+)?)*[ \t]*\r?$))",
    re.MULTILINE,
)
"""The first statement of a Python file. Of these, an import begins files of other languages too."""
_PYTHON_BLOCK = re.compile(r"^[ \t]*(?:def|class|for|if|while|with|try)\b[^\n{}]*:[ \t]*(?:#[^\n]*)?\r?$", re.MULTILINE)
MAX_PARSED = 1 << 20
"""Longest code that is parsed, in characters: a syntax tree takes about a hundred times the memory of its text."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a record was dropped: the rule, the value that it measured, and what else explains it."""

    rule: str
    value: float | str
    details: Mapping[str, Any] = field(default_factory=dict)
    is_private: bool = False  # the record's text must not stand in the data card


class CodeBlock(NamedTuple):
    """A fenced block of an answer. `start` is the offset of its fence in the answer; `language` is the fence's word in lower case."""

    language: str
    code: str
    start: int
    is_closed: bool


class Example:
    """A conversation with the line that it was read from.

    `question` is what the user says, all turns of it; empty for a plain text. `answer` is what the assistant says, or the plain text.
    """

    def __init__(self, conversation: Conversation, line: bytes = b""):
        self.conversation = conversation
        self.line = line
        messages = conversation.messages
        self.question = "\n\n".join([message.content for message in messages if message.role == "user"])
        self.answer = "\n\n".join([message.content for message in messages if message.role in ("assistant", "text")])

    def with_other_answers(self, field_name: str) -> list["Example"]:
        """The record with each text of this field in place of its last assistant turn."""
        messages = self.conversation.messages
        texts = orjson.loads(self.line).get(field_name) if field_name else None
        if not isinstance(texts, list) or messages[-1].role != "assistant":
            return []
        return [
            Example(
                replace(self.conversation, messages=(*messages[:-1], replace(messages[-1], content=text))), self.line
            )
            for text in texts
            if isinstance(text, str) and text.strip()
        ]

    @cached_property
    def blocks(self) -> tuple[CodeBlock, ...]:
        """The fenced blocks of the answer. A fence that is not closed runs to the end of the answer, as in CommonMark."""
        return tuple(fenced_blocks(self.answer))

    @cached_property
    def code(self) -> str:
        """The code of all fenced blocks; the whole answer where there is no fence."""
        return "\n".join([block.code for block in self.blocks]) if self.blocks else self.answer

    @cached_property
    def python_codes(self) -> tuple[str, ...]:
        """Python code of the answer: blocks fenced as Python, other code only if it begins as Python does."""
        if not self.blocks:
            return (self.answer,) if begins_as_python(self.answer) else ()
        return tuple(block.code for block in self.blocks if _is_python(block))

    @cached_property
    def python_trees(self) -> tuple[ast.Module | None, ...]:
        """The syntax tree of each Python code that is short enough to parse; None for one that does not parse."""
        return tuple(parse_python(code) for code in self.python_codes if len(code) <= MAX_PARSED)

    def release(self) -> None:
        """Forget the syntax trees. They take about a hundred times the memory of their code."""
        self.__dict__.pop("python_trees", None)


def fenced(code: str, language: str = "python") -> str:
    """The code as a Markdown block. Its fence is longer than every fence in the code."""
    longest = max((len(fence) for fence in re.findall(r"^[ \t]*(`{3,})", code, re.MULTILINE)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def fenced_blocks(text: str) -> list[CodeBlock]:
    """The fenced blocks of a Markdown text, in order; a closing fence is at least as long as its opening one and says nothing."""
    blocks = []
    opened: re.Match[str] | None = None
    for fence in _fences(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            code = text[opened.end() + 1 : fence.start()]
            blocks.append(CodeBlock(opened[2].lower(), code, opened.start(), True))
            opened = None
    if opened is not None:
        blocks.append(CodeBlock(opened[2].lower(), text[opened.end() + 1 :], opened.start(), False))
    return blocks


def _fences(text: str) -> Iterator[re.Match[str]]:
    """The lines of a text that are fences. Only lines with three backticks or tildes are looked at: most have none."""
    ticks, tildes = text.find("```"), text.find("~~~")
    while ticks >= 0 or tildes >= 0:
        found = ticks if tildes < 0 or 0 <= ticks < tildes else tildes
        fence = _FENCE.match(text, text.rfind("\n", 0, found) + 1)
        if fence is not None:
            yield fence
        end = text.find("\n", found)
        if end < 0:
            return
        ticks = text.find("```", end) if 0 <= ticks < end else ticks
        tildes = text.find("~~~", end) if 0 <= tildes < end else tildes


def _is_python(block: CodeBlock) -> bool:
    return block.language in _PYTHON_NAMES if block.language else begins_as_python(block.code)


def begins_as_python(code: str) -> bool:
    """Whether code without a language begins as a Python file does."""
    start = _PYTHON_START.match(code)
    return start is not None and (not start["import"] or bool(_PYTHON_BLOCK.search(code)))


def parse_python(code: str) -> ast.Module | None:
    """The syntax tree of code at any indentation; None if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is a warning of the parser
            return ast.parse(textwrap.dedent(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
