"""Negative controls in C++, Go, Java, JavaScript and Rust: instrument tests so that one claim can expect another value.

A claim is an assertion about the answer. Its expected values are passed through `mft_expected(claim, value)`; a claim without such
values goes through `mft_holds(claim, truth)`. Each language's bridge defines the two functions, and they change the one claim that
was drawn. An answer that still passes was not compared with the claim. Arguments of a call are never changed, because the right
result for other arguments may be the same. Numbers can become smaller or larger: of `f(x) > 3` only one of the two is wrong. A claim
that two values differ is negated, because it holds for most values. Tests in Python have python/claims.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Instrumented:
    """Tests whose claims can be changed, one at a time; and how many there are."""

    tests: str
    claims: int


@dataclass(frozen=True)
class Dialect:
    """How a language writes a claim: the start of the call, and which of its arguments are the claim."""

    head: str
    part: str  # macro: all arguments together; first: the first one; each: every one is a claim; pair: the first two are equal
    expected: str = "mft_expected"
    holds: str = "mft_holds"
    quotes: str = '"'  # of strings
    has_comma_operator: bool = False  # `(a, b)` is b


_DIALECTS: dict[str, Dialect] = {
    "cpp": Dialect(r"\bassert\s*\(", "macro"),
    "go": Dialect(r"\bassert\.Equal\(", "pair", quotes='"`'),
    "java": Dialect(r"\bList<Boolean>\s+\w+\s*=\s*Arrays\.asList\(", "each", "mft.Claims.expected", "mft.Claims.holds"),
    "js": Dialect(r"\bconsole\.assert\s*\(", "first", quotes="\"'`", has_comma_operator=True),
    "rust": Dialect(r"\bassert!\s*\(|\bassert_eq!\s*\(", "first"),
}
_GUARD = r"\bif\s*\("  # `if (...) throw` is the other way to write a claim
_THROWS = re.compile(r"\s*\{?\s*throw\b")
_COLLECTED = re.compile(r"\w+\.contains\(false\)")  # a list of claims that are instrumented one by one
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class _Token:
    kind: str  # text, character, number, truth, word, other
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Claim:
    """The token ranges of a claim; two ranges are claimed to be equal. `start` and `end` are those of the whole call."""

    parts: tuple[range, ...]
    start: int
    end: int
    is_guard: bool  # the condition of `if (...) throw`


def _tokens(source: str, quotes: str) -> list[_Token]:
    """The source's tokens, without comments, whitespace and raw strings."""
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
    """Tests as tokens. `names` are the functions of the answer; `asked` are the tokens of calls of them."""

    def __init__(self, source: str, dialect: Dialect, names: Sequence[str]):
        self.source, self.dialect, self.names = source, dialect, frozenset(names)
        self.tokens = _tokens(source, dialect.quotes)
        self.partner = self._partners()
        self.at = {token.start: number for number, token in enumerate(self.tokens)}
        calls = [
            range(number, self._closing(number + 1) + 1)
            for number, token in enumerate(self.tokens)
            if token.text in self.names and self._text(number + 1) == "("
        ]
        self.asked = frozenset(number for call in calls for number in call)
        self.discarded = frozenset(self._discarded()) if dialect.has_comma_operator else frozenset[int]()

    def _partners(self) -> dict[int, int]:
        """The closing bracket of each opening one."""
        partner, open_brackets = dict[int, int](), list[int]()
        for number, token in enumerate(self.tokens):
            if token.kind == "other" and token.text in _OPEN:
                open_brackets.append(number)
            elif token.kind == "other" and token.text in _CLOSE and open_brackets:
                partner[open_brackets.pop()] = number
        return partner

    def _closing(self, opening: int) -> int:
        return self.partner.get(opening, len(self.tokens) - 1)

    def _text(self, number: int) -> str:
        return self.tokens[number].text if 0 <= number < len(self.tokens) else ""

    def _discarded(self) -> Iterator[int]:
        """The tokens of `(a, b)` before its last comma, which have no effect. A call's arguments do not count."""
        for opening in self.partner:
            is_call = opening > 0 and (self.tokens[opening - 1].kind == "word" or self._text(opening - 1) in (")", "]"))
            if self._text(opening) == "(" and not is_call:
                yield from (number for part in list(self._arguments(opening))[:-1] for number in part)

    def span(self, part: range) -> tuple[int, int]:
        return self.tokens[part.start].start, self.tokens[part.stop - 1].end

    def claims(self) -> Iterator[_Claim]:
        """All claims about the answer, in order. `assert(true)` is not one."""
        for match in re.finditer(f"(?P<head>{self.dialect.head})|{_GUARD}", self.source):
            opening = self.at.get(match.end() - 1)
            if opening is None:  # inside a string or a comment
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
        """The arguments of the call with this opening parenthesis."""
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
        """True if this part calls the answer."""
        return not self.asked.isdisjoint(part)

    def is_about_inequality(self, claim: _Claim) -> bool:
        """`f(1) != 2`, `!(f(1) == 2)`, `if (f(1) == 2) throw`."""
        words = (self._text(n) for part in claim.parts for n in part if n not in self.asked)
        text = re.sub(r"(?<=\W) | (?=\W)", "", " ".join(words))
        is_negated = text.startswith(("!", "not"))
        says_equal = re.search(r"(?<![!<>=])==|\bequals\b", text) is not None
        return (says_equal and not is_negated) if claim.is_guard else ("!=" in text or (says_equal and is_negated))

    def values(self, claim: _Claim) -> list[_Token]:
        """The expected values of a claim: literals outside of calls of the answer, or those of variables used only here."""
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
        """The literals of `name = ...;`, if the variable is used only in this claim, and not in a call of the answer."""
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


def instrument(tests: str, language: str, names: Sequence[str]) -> Instrumented:
    """Instrument tests in one of the languages above; `names` are the functions of the answer that they call."""
    source = _Source(tests, _DIALECTS[language], names)
    edits: dict[int, tuple[int, str]] = {}  # start: (end, text)
    count = 0
    for claim in source.claims():
        made = _edits(source, claim, count)
        if made and edits.keys().isdisjoint(made):
            edits |= made
            count += 1
    return Instrumented(_edited(tests, edits), count)


def _edits(source: _Source, claim: _Claim, number: int) -> dict[int, tuple[int, str]]:
    """The edits that instrument one claim; none if that is not possible."""
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
    """Edits for Go, where the whole expected value is passed: the type of a constant depends on where it stands.

    If it is `true` or `false` for a comparison, its numbers are passed: `assert.Equal(true, math.Abs(F()-0.5) < 1e-6)`.
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
