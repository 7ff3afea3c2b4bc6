"""Negative controls: tests rewritten so that one claim of theirs, chosen when they run, expects something else.

Goes in: tests and the names they ask the answer for. Comes out: the same tests, with the values that each claim expects passed
through `mft_expected(claim, value)`, and a claim without such values through `mft_holds(claim, truth)`; and how many claims there
are. Who runs the tests draws a claim; the two functions, which each language's bridge defines, change what that claim expects. An
answer that passes all the same has not been compared with it. A claim is an assertion about an answer; the arguments of a question
are never changed, since a right answer to another question may well be the same. Numbers can be changed downwards or upwards: of
`f(x) > 3` only one of the two is wrong. A claim that two values differ is negated instead, because it holds for most values.
Python's tests: claims_python.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifted:
    """Tests whose claims can be changed, one at a time."""

    tests: str
    claims: int


@dataclass(frozen=True)
class Dialect:
    """How a language of braces writes a claim: what opens it, and which part of the call it is."""

    head: str
    part: str  # macro: all between the parentheses; first: the first argument; each: every argument is a claim; pair: two are equal
    expected: str = "mft_expected"
    holds: str = "mft_holds"
    quotes: str = '"'  # of texts
    discards: bool = False  # `(a, b)` is b


_DIALECTS: dict[str, Dialect] = {
    "cpp": Dialect(r"\bassert\s*\(", "macro"),
    "go": Dialect(r"\bassert\.Equal\(", "pair", quotes='"`'),
    "java": Dialect(r"\bList<Boolean>\s+\w+\s*=\s*Arrays\.asList\(", "each", "mft.Claims.expected", "mft.Claims.holds"),
    "js": Dialect(r"\bconsole\.assert\s*\(", "first", quotes="\"'`", discards=True),
    "rust": Dialect(r"\bassert!\s*\(|\bassert_eq!\s*\(", "first"),
}
_GUARD = r"\bif\s*\("  # of a statement that throws: the other way to write a claim
_THROWS = re.compile(r"\s*\{?\s*throw\b")
_COLLECTED = re.compile(r"\w+\.contains\(false\)")  # claims that were lifted one by one
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class _Token:
    kind: str  # text, character, number, truth, word, other
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Claim:
    """Token ranges of what is claimed; two ranges are equal to each other. `start` and `end` are the whole call's."""

    parts: tuple[range, ...]
    start: int
    end: int
    is_guard: bool  # it throws if what stands here is true


def _tokens(source: str, quotes: str) -> list[_Token]:
    """The source's tokens, without comments, whitespace and raw texts."""
    texts = "|".join(rf"{quote}(?:\\.|[^{quote}\\])*{quote}" for quote in quotes)
    character = "" if "'" in quotes else r"|(?P<character>'(?:\\[^']+|[^'\\\n])')"
    pattern = re.compile(
        rf"(?P<skip>//[^\n]*|/\*.*?\*/|\s+|\b[rb]+\#*\"[^\"]*\"\#*|\bb'[^']+')|(?P<text>{texts}){character}"
        r"|(?P<number>(?<![\w.])\.?\d(?:\w|(?<=[eE])[+-]|\.(?=\d)|\.(?![.\w]))*)"
        r"|(?P<truth>\b(?:true|false)\b)|(?P<word>[A-Za-z_$][\w$]*)|(?P<other>.)",
        re.DOTALL,
    )
    found = pattern.finditer(source)
    return [_Token(str(m.lastgroup), m.group(), m.start(), m.end()) for m in found if m.lastgroup != "skip"]


class _Source:
    """Tests taken apart."""

    def __init__(self, source: str, dialect: Dialect, names: Sequence[str]):
        self.source, self.dialect, self.names = source, dialect, frozenset(names)
        self.tokens = _tokens(source, dialect.quotes)
        self.partner = self._partners()
        self.at = {token.start: number for number, token in enumerate(self.tokens)}
        questions = [
            range(number, self._closing(number + 1) + 1)
            for number, token in enumerate(self.tokens)
            if token.text in self.names and self._text(number + 1) == "("
        ]
        self.asked = frozenset(number for question in questions for number in question)
        self.discarded = frozenset(self._discarded()) if dialect.discards else frozenset[int]()

    def _partners(self) -> dict[int, int]:
        """The closing bracket of each opening one."""
        partner, waiting = dict[int, int](), list[int]()
        for number, token in enumerate(self.tokens):
            if token.kind == "other" and token.text in _OPEN:
                waiting.append(number)
            elif token.kind == "other" and token.text in _CLOSE and waiting:
                partner[waiting.pop()] = number
        return partner

    def _closing(self, opening: int) -> int:
        return self.partner.get(opening, len(self.tokens) - 1)

    def _text(self, number: int) -> str:
        return self.tokens[number].text if 0 <= number < len(self.tokens) else ""

    def _discarded(self) -> Iterator[int]:
        """The tokens of `(a, b)` before its last comma, which change nothing. A call's arguments are none."""
        for opening in self.partner:
            is_call = opening > 0 and (self.tokens[opening - 1].kind == "word" or self._text(opening - 1) in (")", "]"))
            if self._text(opening) == "(" and not is_call:
                yield from (number for part in list(self._arguments(opening))[:-1] for number in part)

    def span(self, part: range) -> tuple[int, int]:
        """Where a part stands in the source."""
        return self.tokens[part.start].start, self.tokens[part.stop - 1].end

    def claims(self) -> Iterator[_Claim]:
        """All claims about an answer, in order. `assert(true)` is none."""
        for match in re.finditer(f"(?P<head>{self.dialect.head})|{_GUARD}", self.source):
            opening = self.at.get(match.end() - 1)
            if opening is None:  # within a text or a comment
                continue
            end = self.tokens[self._closing(opening)].end
            arguments = list(self._arguments(opening))
            for parts in self._parts(match, arguments, end):
                if any(n in self.asked or self.tokens[n].kind == "word" for part in parts for n in part):
                    yield _Claim(parts, match.start(), end, not match.group("head"))

    def _parts(self, match: re.Match[str], arguments: list[range], end: int) -> list[tuple[range, ...]]:
        if not arguments:
            return []
        whole = range(arguments[0].start, arguments[-1].stop)
        if not match.group("head"):
            throws = _THROWS.match(self.source, end) and not _COLLECTED.fullmatch(self.source[slice(*self.span(whole))])
            return [(whole,)] if throws else []
        if self.dialect.part == "each":
            return [(argument,) for argument in arguments]
        if self.dialect.part == "pair" or match.group().startswith("assert_eq"):
            return [tuple(arguments[:2])]
        return [(whole if self.dialect.part == "macro" else arguments[0],)]

    def _arguments(self, opening: int) -> Iterator[range]:
        """The arguments of the call whose parenthesis this is."""
        number = first = opening + 1
        end = self._closing(opening)
        while number < end:
            if self._text(number) == ",":
                yield range(first, number)
                first = number + 1
            number = self._closing(number) + 1 if number in self.partner else number + 1
        if first < end:
            yield range(first, end)

    def asks(self, part: range) -> bool:
        """True if the answer is asked within it."""
        return not self.asked.isdisjoint(part)

    def is_about_inequality(self, claim: _Claim) -> bool:
        """`f(1) != 2`, `!(f(1) == 2)`, `if (f(1) == 2) throw`."""
        words = (self._text(n) for part in claim.parts for n in part if n not in self.asked)
        text = re.sub(r"(?<=\W) | (?=\W)", "", " ".join(words))
        is_turned = text.startswith(("!", "not"))
        says_equal = re.search(r"(?<![!<>=])==|\bequals\b", text) is not None
        return (says_equal and not is_turned) if claim.is_guard else ("!=" in text or (says_equal and is_turned))

    def values(self, claim: _Claim) -> list[_Token]:
        """What a claim expects: literals outside of questions, or those of variables that nothing else uses."""
        if self.is_about_inequality(claim):
            return []
        found = [self.tokens[n] for part in claim.parts for n in part if n not in self.asked and self._is_value(n)]
        return found or [token for name in self._names_of(claim) for token in self._initial_values(name, claim)]

    def _is_value(self, number: int) -> bool:
        token, before, after = self.tokens[number], self._text(number - 1), self._text(number + 1)
        if token.kind not in ("text", "number", "truth", "character") or before == ".":
            return False
        if number in self.discarded or self._is_index(number):
            return False
        is_key = token.kind == "text" and after == ":"
        is_format = token.kind == "text" and before == "(" and self._text(number - 2) == "!"
        return not (is_key or is_format or "${" in token.text)

    def _is_index(self, number: int) -> bool:
        """True for the 0 of `a[0]`."""
        if number < 2 or self._text(number - 1) != "[" or self.tokens[number - 2].end != self.tokens[number - 1].start:
            return False
        return self.tokens[number - 2].kind == "word" or self._text(number - 2) in (")", "]")

    def _names_of(self, claim: _Claim) -> list[str]:
        words = (n for part in claim.parts for n in part if n not in self.asked and self.tokens[n].kind == "word")
        return sorted({self._text(n) for n in words if self._text(n + 1) != "("})

    def _initial_values(self, name: str, claim: _Claim) -> list[_Token]:
        """The literals of `name = ...;`, if the variable is used in this claim, in no question, and nowhere else."""
        inside = {n for part in claim.parts for n in part if n not in self.asked}
        others = [
            n for n, token in enumerate(self.tokens) if token.text == name and token.kind == "word" and n not in inside
        ]
        if len(others) != 1 or self._text(others[0] + 1) != "=" or self._text(others[0] + 2) == "=":
            return []
        number = first = others[0] + 2
        while number < len(self.tokens) and self._text(number) != ";":
            number = self._closing(number) + 1 if number in self.partner else number + 1
        part = range(first, min(number, len(self.tokens)))
        return [] if self.asks(part) else [self.tokens[n] for n in part if self._is_value(n)]


def lift(tests: str, language: str, names: Sequence[str]) -> Lifted:
    """Tests in C++, Go, Java, JavaScript or Rust with their claims lifted; `names` are what they ask the answer for."""
    source = _Source(tests, _DIALECTS[language], names)
    edits: dict[int, tuple[int, str]] = {}  # start: (end, text)
    count = 0
    for claim in source.claims():
        made = _edits(source, claim, count)
        if made and edits.keys().isdisjoint(made):
            edits |= made
            count += 1
    return Lifted(_edited(tests, edits), count)


def _edits(source: _Source, claim: _Claim, number: int) -> dict[int, tuple[int, str]]:
    """What lifting one claim changes; nothing if it cannot be lifted."""
    dialect, text = source.dialect, source.source
    if dialect.part == "pair":
        return _pair_edits(source, claim, number)
    if values := source.values(claim):
        return {token.start: (token.end, f"{dialect.expected}({number}, {token.text})") for token in values}
    start, end = source.span(claim.parts[0])
    if len(claim.parts) == 1:
        return {start: (end, f"{dialect.holds}({number}, {text[start:end]})")}
    left, right = (text[slice(*source.span(part))] for part in claim.parts)
    return {claim.start: (claim.end, f"assert!({dialect.holds}({number}, ({left}) == ({right})))")}


def _pair_edits(source: _Source, claim: _Claim, number: int) -> dict[int, tuple[int, str]]:
    """Go's constants take their type from where they stand, so what is expected is lifted whole.

    Where that is a truth about a comparison, the numbers compared with are: `assert.Equal(true, math.Abs(F()-0.5) < 1e-6)`.
    """
    spans = [source.span(part) for part in claim.parts if not source.asks(part)][:1]
    if any(source.source[start:end] in ("true", "false") for start, end in spans):
        floats = [token for token in source.values(claim) if token.kind == "number" and not token.text.isdigit()]
        if floats and re.search("[<>]", source.source[claim.start : claim.end]):
            return {token.start: (token.end, f"mft_number({number}, {token.text})") for token in floats}
    return {start: (end, f"mft_expected({number}, {source.source[start:end]})") for start, end in spans}


def _edited(text: str, edits: dict[int, tuple[int, str]]) -> str:
    out, position = [], 0
    for start, (end, replacement) in sorted(edits.items()):
        out += [text[position:start], replacement]
        position = end
    return "".join([*out, text[position:]])
