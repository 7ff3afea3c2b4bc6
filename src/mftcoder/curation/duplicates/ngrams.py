"""Words of a text, and hashes of the runs of words in it: many texts at once, because a record's text is short."""

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import xxhash
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD_OR_CHARACTER = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_OTHERS_AS_SPACES = bytes(code if _WORD.match(chr(code)) and code < 128 else 32 for code in range(256))
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_KNOWN, _LONGEST_KNOWN = 1 << 18, 64


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores; each Chinese, Japanese or Korean character is a word."""
    return _WORD.findall(text) if text.isascii() else _WORD_OR_CHARACTER.findall(text)


class _WordHashes(dict[bytes, int]):
    """The hash of each word. Bounded: new words push out all old ones."""

    def __missing__(self, word: bytes) -> int:
        value = xxhash.xxh3_64_intdigest(word)
        if len(word) <= _LONGEST_KNOWN:
            if len(self) >= _MOST_KNOWN:
                self.clear()
            self[word] = value
        return value


_hashes = _WordHashes()


def _word_hashes(text: str) -> list[int]:
    """A hash for each of `words_of`; a text without words is its only word."""
    if text.isascii():
        words = text.encode().translate(_OTHERS_AS_SPACES).split()  # `words_of`, in a quarter of the time
    else:
        words = [word.encode(errors="surrogatepass") for word in words_of(text)]
    if not words:
        words = [stripped.encode(errors="surrogatepass")] if (stripped := text.strip()) else []
    return list(map(_hashes.__getitem__, words))


def ngram_hashes(texts: Sequence[str], length: int) -> list[NDArray[np.uint64]]:
    """For each text a 64-bit hash of each run of `length` words; a shorter text is one run, and a blank one has none."""
    words = list(map(_word_hashes, texts))
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    starts = np.cumsum(sizes) - sizes
    flat = np.fromiter(chain.from_iterable(words), np.uint64, int(sizes.sum()))
    combined = np.zeros(len(flat), np.uint64)
    shorter = []
    for offset in range(min(length, len(flat))):
        ended = starts[sizes == offset] if offset else starts[:0]
        shorter.append((ended, combined[ended]))  # what follows would take in words of the next text
        runs = combined[: len(flat) - offset]
        runs ^= flat[offset:]
        runs *= _MULTIPLIER
        runs ^= runs >> np.uint64(29)
    for places, values in shorter:
        combined[places] = values
    counts = np.where(sizes > 0, np.maximum(1, sizes - length + 1), 0)
    return [combined[start : start + count] for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]
