"""Code as tokens in which names do not matter, and n-grams of such tokens.

Names are encoded as in Baker's parameterized matching (1993): a name is the distance to its last use, or new. An n-gram looks no further
back than its own first token. So a copy under other names has the same n-grams, and an inserted statement changes only the n-grams that
it touches. Names of builtins, attributes and types stay, and so do literals.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from mftcoder.curation.duplicates.leaves import NAME, Leaf, python_leaves, syntax_leaves
from mftcoder.curation.example import MAX_PARSED, begins_as_python, fenced_blocks, parse_python
from mftcoder.curation.statistics import language_name
from mftcoder.curation.syntax import LANGUAGES, guess_language

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_START = np.uint64(0xA0761D6478BD642F)


@dataclass(frozen=True)
class CodeTokens:
    """T tokens of a code: a hash each, and for a name the number of tokens since its last use."""

    hashes: NDArray[np.uint64]  # [T]
    distances: NDArray[np.int64]  # [T] -1: not a name; 0: a name that is new

    def ngrams(self, length: int) -> NDArray[np.uint64]:
        """A hash of each run of `length` tokens; a shorter code is one run, and an empty one has none."""
        total = len(self.hashes)
        if not total:
            return np.empty(0, np.uint64)
        count = max(1, total - length + 1)
        combined = np.full(count, _START)
        for offset in range(min(length, total)):
            distances = self.distances[offset : offset + count]
            in_the_run = np.where(distances <= offset, distances, 0).astype(np.uint64)
            hashes = np.where(distances < 0, self.hashes[offset : offset + count], in_the_run)
            combined = (combined ^ hashes) * _MULTIPLIER
            combined ^= combined >> np.uint64(29)
        return combined

    def fingerprint(self) -> int:
        """A hash of all tokens: equal for codes that are equal but for names."""
        return int(
            xxhash.xxh3_64_intdigest(
                np.where(self.distances < 0, self.hashes, self.distances.astype(np.uint64)).tobytes()
            )
        )


def encode(leaves: Iterable[Leaf]) -> CodeTokens:
    hashes: list[int] = []
    distances: list[int] = []
    last: dict[str, int] = {}
    for place, (kind, text) in enumerate(leaves):
        if kind == NAME:
            hashes.append(0)
            distances.append(place - last.get(text, place))
            last[text] = place
        else:
            hashes.append(_leaf_hash(kind, text))
            distances.append(-1)
    return CodeTokens(np.array(hashes, np.uint64), np.array(distances, np.int64))


@lru_cache(maxsize=1 << 16)
def _leaf_hash(kind: str, text: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{kind} {text}".encode(errors="surrogatepass"))


def python_tokens(tree: ast.AST) -> CodeTokens:
    """The tokens of a syntax tree of Python, or of one of its nodes."""
    return encode(python_leaves(tree))


def code_tokens(code: str, language: str) -> CodeTokens | None:
    """The tokens of code in one of LANGUAGES; None for code that cannot be read."""
    if len(code) > MAX_PARSED:
        return None
    if language == "python":
        tree = parse_python(code)
        return python_tokens(tree) if tree is not None else None
    leaves = syntax_leaves(code, language)
    return encode(leaves) if leaves is not None else None


def code_and_words(text: str) -> tuple[str | CodeTokens, ...]:
    """The words of a text, then its codes as tokens. Code that cannot be read counts as words."""
    words, codes = [], []
    for part, language in _parts(text):
        tokens = code_tokens(part, language) if language else None
        if tokens is None:
            words.append(part)
        else:
            codes.append(tokens)
    return ("\n".join(words), *codes)


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """A text, cut at its fenced blocks, with the language of each part; empty for words."""
    blocks = fenced_blocks(text)
    if not blocks:
        yield text, _language(text, "")
        return
    read = 0
    for block in blocks:
        start = text.find(block.code, block.start)
        yield text[read:start], ""
        yield block.code, _language(block.code, block.language)
        read = start + len(block.code)
    yield text[read:], ""


def _language(code: str, fence: str) -> str:
    """By the fence's word; without one, that of code which begins as Python does, or which has a block in braces."""
    if fence:
        return name if (name := language_name(fence)) in LANGUAGES else ""
    if begins_as_python(code):
        return "python"
    return (guess_language(code) or "") if "{" in code and "}" in code else ""
