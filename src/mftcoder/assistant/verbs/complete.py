"""`complete`: the rest of a line, or a block, at a position. Nothing but the insertion changes, and it brings no syntax error."""

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mftcoder.assistant.checks.comments import TEXTS, comments_in, fault_of
from mftcoder.assistant.checks.patches import patch_of
from mftcoder.assistant.checks.replies import (
    code_of,
    python_words,
    refuse_foreign_letters,
    refuse_hidden,
    refuse_hidden_code,
    refuse_size,
)
from mftcoder.assistant.files import Place, SourceFile
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, RefusedAnswer, conversation, until_accepted
from mftcoder.curation.example import parse_python
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node, error_places, parse
from mftcoder.errors import ConfigError, NoAnswerAcceptedError

BEFORE, AFTER = 6000, 2000
"""Characters around the position that the model sees."""
LINE_TOKENS, BLOCK_TOKENS = 48, 256
_MOST_LINES = 60
_TASK = "Here is {title} code with a gap, marked <GAP>. Write only the text that belongs in the gap{size}. Answer with one code block."


def complete(model: Model, file: SourceFile, place: Place, *, block: bool | None, rounds: int) -> Proposal:
    """The text that belongs at a position. `block` None: a block where the rest of the line is empty and the line is blank or opens one."""
    at = _offset(file, place)
    before, after = file.text[:at], file.text[at:]
    is_block = _asks_for_block(before, after) if block is None else block
    seen = before[-BEFORE:], after[:AFTER]
    what = f"{file.name}:{place.line}"

    def judge(text: str) -> str:
        return checked_completion(file, before, after, text, block=is_block)

    tokens = BLOCK_TOKENS if is_block else LINE_TOKENS
    reply = model.go_on(*seen, stop=() if is_block else ("\n",), max_tokens=tokens)
    if reply is None:
        return _by_chat(model, file, what, seen, is_block, before, after, rounds)
    try:
        return _proposal(file, before, after, judge(reply.text))
    except RefusedAnswer as refused:
        raise NoAnswerAcceptedError(f"{what}: {refused.code}: {refused.why}") from refused


def _by_chat(
    model: Model, file: SourceFile, what: str, seen: tuple[str, str], block: bool, before: str, after: str, rounds: int
) -> Proposal:
    """Through a chat, where the endpoint has no completions."""
    size = "" if block else ": the rest of one line"
    task = _TASK.format(title=title_of(file.language), size=size)

    def judge(reply: Written) -> str:
        code, _ = code_of(reply, file.language, file.text)
        return checked_completion(file, before, after, code.removesuffix("\n"), block=block)

    text, refusals = until_accepted(
        model, conversation("You complete code.", task, f"{seen[0]}<GAP>{seen[1]}"), judge, rounds=rounds, what=what
    )
    return _proposal(file, before, after, text, refusals)


def _proposal(file: SourceFile, before: str, after: str, text: str, refusals: tuple = ()) -> Proposal:
    new = before + text + after
    return Proposal("complete", file, text, patch_of(file, new), new, refusals=refusals)


def _offset(file: SourceFile, place: Place) -> int:
    """The index of the position. ConfigError for one that the file does not have."""
    lines = file.text.split("\n")
    if not 1 <= place.line <= len(lines):
        raise ConfigError(f"{file.name}:{place.line}: the file has {len(lines)} lines")
    line = lines[place.line - 1]
    column = place.column or len(line) + 1
    if column > len(line) + 1:
        raise ConfigError(f"{file.name}:{place.line}:{column}: the line has {len(line)} characters")
    return sum(len(one) + 1 for one in lines[: place.line - 1]) + column - 1


def _asks_for_block(before: str, after: str) -> bool:
    line, rest = before.rpartition("\n")[2], after.partition("\n")[0]
    return not rest.strip() and (not line.strip() or line.rstrip().endswith((":", "{")))


def checked_completion(file: SourceFile, before: str, after: str, text: str, *, block: bool) -> str:
    """The part of a text that may be inserted. RefusedAnswer if no part of it may."""
    refuse_size(text)
    text = text.replace("\r\n", "\n").rstrip()
    refuse_hidden(text, file.text)
    if not block:
        stands_behind = after.partition("\n")[0].strip()
        text = text.split("\n")[0].rstrip()
        rest = text.removesuffix(stands_behind)
        tried: Iterable[str] = dict.fromkeys((rest, text) if rest.strip() else (rest,))
    else:
        tried = _candidates(text, before, after)
    was = Faults.of(file.language, before + after)
    for shorter in tried:
        if shorter.strip() and _fits(file.language, was, before, shorter, after):
            _refuse_other_reading(file.language, before, shorter, after)
            if file.language == "python":
                refuse_foreign_letters(python_words(shorter), file.text)
            return shorter
    if not text.strip() or not (block or rest.strip()):
        raise RefusedAnswer("empty", "The completion adds nothing.")
    raise RefusedAnswer("does_not_parse", "With the completion the file has more syntax errors than before.")


def _refuse_other_reading(language: str, before: str, text: str, after: str) -> None:
    """Refuse a text after which code behind it is another code: a comment, a part of a text or directive, in another block or encoding."""
    if language == "python" and _encoding(before + after) != _encoding(before + text + after):
        raise RefusedAnswer("directive", "The completion changes the encoding of the file.")
    refuse_hidden_code(text, language)
    if language == "cpp" and text.endswith("\\"):
        raise RefusedAnswer("outside", "The completion joins its last line with the one behind it.")
    begin, whole = len(before.encode()), (before + text + after).encode()
    end = begin + len(text.encode())
    known = {node.start_byte for node in comments_in((before + after).encode(), language)}
    for node in comments_in(whole, language):
        is_new = begin - 1 <= node.start_byte < end and (node.start_byte >= begin or node.start_byte not in known)
        if is_new and whole[end : node.end_byte].strip():
            raise RefusedAnswer("outside", "The completion makes a comment of the code behind it.")
        if is_new and (fault := fault_of(node, whole, language)):
            raise RefusedAnswer("directive", f"{fault}: {text_of(node)[:100]}")
    tree = parse(before + text + after, language)
    for node in walk(tree.root_node) if tree is not None else ():
        is_text = node.type in TEXTS or node.type in ("template_string", "preproc_arg")
        if is_text and begin <= node.start_byte < end and whole[end : node.end_byte].strip():
            raise RefusedAnswer("outside", "The completion makes a text or a directive of the code behind it.")
    if tree is not None and _takes_brackets(language, before, text, after, tree.root_node):
        raise RefusedAnswer(
            "outside",
            "The completion closes what was opened before it, and opens another block for the code behind it.",
        )


def _takes_brackets(language: str, before: str, text: str, after: str, root: Node) -> bool:
    """Whether a bracket behind the text was the other half of one before it, and is now that of one in it."""
    tree = parse(before + after, language)
    if tree is None:
        return False
    begin, size = len(before.encode()), len(text.encode())
    old, new = _brackets(tree.root_node), _brackets(root)
    taken = (new.pairs.get(close + size, -1) for close, opened in old.pairs.items() if opened < begin <= close)
    return any(begin <= opened < begin + size for opened in taken) or any(
        begin <= place < begin + size and opened < begin for place, opened in new.branches
    )


def _encoding(code: str) -> str:
    try:
        return tokenize.detect_encoding(io.BytesIO(code.encode()).readline)[0]
    except SyntaxError as error:
        return str(error)


def _candidates(text: str, before: str, after: str) -> Iterator[str]:
    """The lines of the block, without those that the file goes on with; then always one line less."""
    lines = _of_block(text, before)[:_MOST_LINES]
    follows = [line.strip() for line in after.split("\n") if line.strip()][:1]
    while len(lines) > 1 and lines[-1].strip() in ("", *follows):
        lines.pop()
    for count in range(len(lines), 0, -1):
        yield "\n".join(lines[:count]).rstrip()


def _of_block(text: str, before: str) -> list[str]:
    """The lines up to the first one that is indented less than the block."""
    line = before.rpartition("\n")[2]
    indent = _indent(line)
    opens = line.rstrip().endswith((":", "{"))
    lines = text.split("\n")
    for number, one in enumerate(lines[1:], 1):
        if one.strip() and (_indent(one) < indent or (opens and _indent(one) == indent)):
            return lines[:number]
    return lines


def _indent(line: str) -> int:
    return len(re.match(r"[ \t]*", line)[0].expandtabs(4))  # type: ignore[index]


@dataclass(frozen=True)
class Faults:
    """What is wrong with the syntax of a text."""

    is_refused: bool
    """Whether Python's own parser refuses it."""
    places: tuple[tuple[int, int], ...]
    """The bytes that the grammar cannot read, one for a missing token."""
    open_brackets: int
    """Brackets without their other half."""

    @classmethod
    def of(cls, language: str, code: str) -> "Faults":
        tree = parse(code, language)
        is_refused = language == "python" and parse_python(code) is None
        if tree is None:
            return cls(is_refused, ((0, len(code)),), len(code))
        return cls(is_refused, tuple(error_places(tree.root_node)), _brackets(tree.root_node).alone)

    @property
    def size(self) -> int:
        """How many bytes cannot be read."""
        return sum(end - start for start, end in self.places)

    def is_worse_than(self, other: "Faults") -> bool:
        """Whether there is more of any fault."""
        mine, others = ((one.is_refused, one.size, one.open_brackets) for one in (self, other))
        return any(now > before for now, before in zip(mine, others, strict=True))


@dataclass(frozen=True)
class _Brackets:
    """The brackets of a text, and the directives of C++ that begin and end a block, outside of strings and comments."""

    pairs: dict[int, int]
    """Where one closes -> where its other half opens, in bytes."""
    branches: list[tuple[int, int]]
    """Where an `#else` stands, and where its `#if`."""
    alone: int
    """How many have no other half."""


def _brackets(root: Node) -> _Brackets:
    """Tokens that the grammar adds do not count."""
    waiting: list[tuple[str, int]] = []
    found = _Brackets({}, [], 0)
    alone = 0
    for node in walk(root):
        if node.is_missing or node.type not in _BRACKETS:
            continue
        kind, what = _BRACKETS[node.type]
        if what == "opens":
            waiting.append((kind, node.start_byte))
        elif what == "divides":
            found.branches.extend((node.start_byte, place) for one, place in waiting[-1:] if one == kind)
        elif waiting and waiting[-1][0] == kind:
            found.pairs[node.start_byte] = waiting.pop()[1]
        else:
            alone += 1
    return replace(found, alone=alone + len(waiting))


_BRACKETS = {
    **{opens: (opens[-1], "opens") for opens in ("(", "[", "{", "${")},  # `${` of a template ends with `}`
    **{closes: (opens, "closes") for opens, closes in ("()", "[]", "{}")},
    **dict.fromkeys(("#if", "#ifdef", "#ifndef"), ("#if", "opens")),
    **dict.fromkeys(("#else", "#elif", "#elifdef", "#elifndef"), ("#if", "divides")),
    "#endif": ("#if", "closes"),
}


def _fits(language: str, was: Faults, before: str, text: str, after: str) -> bool:
    """Whether no fault is added, and the inserted text lies in none, also in a file that has faults already."""
    now = Faults.of(language, before + text + after)
    begin = len(before.encode())
    end = begin + len(text.encode())
    touches = any(start < end and begin < stop for start, stop in now.places)
    return not touches and not now.is_worse_than(was)
