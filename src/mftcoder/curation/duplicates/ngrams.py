"""Words of a text, and hashes of the runs of words in it: many texts at once, because a record's text is short."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD_OR_CHARACTER = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WINDOW = 1 << 16
"""Bytes that are hashed together, so that their numbers stay in the cache. A longer word counts as several."""
_PLACE = 0xD1342543DE82EF95


def _powers(base: int) -> NDArray[np.uint64]:
    factors = np.full(_WINDOW, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


_RAISED, _LOWERED = _powers(_PLACE), _powers(pow(_PLACE, -1, 1 << 64))
_BYTES = np.array([xxhash.xxh3_64_intdigest(bytes([byte])) | 1 for byte in range(256)], np.uint64)
_BYTES[[code for code in range(128) if not _WORD.match(chr(code))]] = 0  # what separates words


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores; each Chinese, Japanese or Korean character is a word."""
    return _WORD.findall(text) if text.isascii() else _WORD_OR_CHARACTER.findall(text)


_STOP_WORDS = frozenset(
    """i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
    itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
    has had having do does did doing a an the and but if or because as until while of at by for with about against between
    into through during before after above below to from up down in out on off over under again further then once here there
    when where why how all any both each few more most other some such no nor not only own same so than too very s t can will
    just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn
    wasn weren won wouldn""".split()  # noqa: SIM905  # a list of 150 lines otherwise
)


def core_words(text: str) -> frozenset[str]:
    """The distinct words in lower case that carry the meaning: without English function words and punctuation."""
    return frozenset(words_of(text.lower())) - _STOP_WORDS


def _word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash for each of `words_of` of all texts, and the number of words of each text. A text without words is its only word."""
    separated = (text if text.isascii() else " ".join(words_of(text)) for text in texts)
    encoded = [text.encode(errors="surrogatepass") for text in separated]
    found = list(_hashes_in(b"\n".join(encoded)))
    flat = np.concatenate([hashes for _, hashes in found])
    ends = np.cumsum([len(part) + 1 for part in encoded])
    counts = np.diff(np.searchsorted(np.concatenate([starts for starts, _ in found]), ends), prepend=0)
    others = {place: stripped for place in np.flatnonzero(counts == 0).tolist() if (stripped := texts[place].strip())}
    values = [xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass")) for text in others.values()]
    before = (np.cumsum(counts) - counts)[list(others)]
    counts[list(others)] = 1
    return np.insert(flat, before, np.array(values, np.uint64)), counts


def _hashes_in(data: bytes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Start and hash of each word: its bytes as the digits of a number modulo 2^64, so that sums up to each byte give them all."""
    characters = np.frombuffer(data, np.uint8)
    begin = 0
    while begin < len(data) or not begin:
        digits = np.concatenate([_BYTES[characters[begin : begin + _WINDOW]], np.zeros(1, np.uint64)])
        gaps = np.flatnonzero(digits == 0)
        end = len(digits) - 1
        if begin + end < len(data) and len(gaps) > 1:
            end = int(gaps[-2])  # the last word goes on in the next window
        is_word = digits[:end] != 0
        edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        sums = np.zeros(end + 1, np.uint64)
        np.cumsum(digits[:end] * _RAISED[:end], out=sums[1:])
        hashes = (sums[ends] - sums[starts]) * _LOWERED[starts]
        hashes ^= hashes >> np.uint64(32)
        yield starts + begin, hashes * _MULTIPLIER
        begin += max(1, end)


def ngram_hashes(texts: Sequence[str], length: int) -> list[NDArray[np.uint64]]:
    """For each text a 64-bit hash of each run of `length` words; a shorter text is one run, and a blank one has none."""
    flat, sizes = _word_hashes(texts)
    starts = np.cumsum(sizes) - sizes
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
