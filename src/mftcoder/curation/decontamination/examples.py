"""Examples in a text: a call with literal arguments and its value, as doctests, asserts and sentences write them.

`>>> f(2, 3)` with `5` on the next line, `assert f(2, 3) == 5` and `f(2,3) -> 5` are one example. The function's name does not count.
"""

import ast
import re
import warnings
from collections.abc import Iterator

import xxhash

_ARGUMENTS = r"[A-Za-z_]\w* ?\((?P<arguments>.*)\)"
_DOCTEST = re.compile(rf"^\s*>>>\s*{_ARGUMENTS}\s*$")
_IS = r"==+>?|=>|[-=]?->|→|➞|=|(?:should )?returns?|is"
_CALL = re.compile(rf"(?<![\w.]){_ARGUMENTS}[\"'`]?\s*(?:{_IS})\s*(?P<value>.+)$")
_END = re.compile(r"\s+#|\"{3}|'{3}|;|\.?\s*$")
_LONGEST = 2000


def example_hashes(text: str) -> frozenset[int]:
    """A hash of each example."""
    return frozenset(
        xxhash.xxh3_64_intdigest(f"{arguments!r} {value!r}".encode(errors="surrogatepass"))
        for arguments, value in _examples(text)
    )


def _examples(text: str) -> Iterator[tuple[object, object]]:
    """Arguments and value of each call whose arguments and value are literals."""
    lines = text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if "(" not in line or len(line) > _LONGEST:
            continue
        if doctest := _DOCTEST.match(line):
            arguments, value = doctest["arguments"], below
        elif call := _CALL.search(line):
            arguments, value = call["arguments"], call["value"]
        else:
            continue
        found = _literal(f"({arguments},)" if arguments.strip() else "()"), _first_literal(value)
        if _NONE not in found:
            yield found


_NONE = object()


def _first_literal(text: str) -> object:
    """The literal that a text begins with: `5  # because`, `5.` and `5, "a message"` are 5."""
    cut = _END.split(text.strip(), maxsplit=1)[0]
    found = _literal(cut)
    return found if found is not _NONE else _literal(cut.rsplit(",", 1)[0])


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is a warning of the parser
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _NONE
