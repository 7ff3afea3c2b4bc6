"""What is compared of a record: the set of its n-grams as hashes, and the keys of its MinHash bands.

Question and answer have different n-grams, so a record that asks for code from text is no duplicate of one that asks for the text from the
code. MinHash is rensa's. How n-grams of words are hashed is left to ngrams.py, how code is read without its names to tokens.py.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mftcoder.curation.duplicates.config import DedupConfig, minhash_library
from mftcoder.curation.duplicates.ngrams import ngram_hashes
from mftcoder.curation.duplicates.tokens import CodeTokens, code_and_words
from mftcoder.curation.example import Example
from mftcoder.jsonl import atomic_path

PERMUTATIONS, BANDS = 128, 32
"""Of pairs with Jaccard similarity 0.7, (1 - 0.7^4)^32 = 0.015% share no band and are missed; with 0.8 none, with 0.6 1.2%."""
_MINHASH_SEED = 1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_QUESTION_SALT = np.uint64(0xD6E8FEB86659FD93)
TOKENS_OF_A_WORD = 2
"""Tokens of code, operators among them, that stand for a word in the length of an n-gram."""


@dataclass(frozen=True)
class Compared:
    """What of a record is compared: words as text, and code without its names as tokens."""

    question: tuple[str | CodeTokens, ...]
    answer: tuple[str | CodeTokens, ...]

    def exact_hash(self) -> int:
        """Equal for records whose compared parts differ in whitespace only."""
        question, answer = (" ".join(map(_without_layout, parts)) for parts in (self.question, self.answer))
        return xxhash.xxh3_64_intdigest(f"{len(question)}:{question}{answer}".encode(errors="surrogatepass"))


def compared(example: Example, config: DedupConfig) -> Compared:
    """The parts of a record that the options ask for."""
    parts = code_and_words if config.code == "renamed" else _as_written
    return Compared(
        parts(example.question) if config.on != "answer" else (),
        parts(example.answer) if config.on != "question" else (),
    )


def _as_written(text: str) -> tuple[str, ...]:
    return (text,)


def ngram_sets(records: Sequence[Compared], words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The n-grams of N records, those of each record sorted and each once, one set behind the other; and their N + 1 offsets."""
    texts = [part for record in records for part in (*record.question, *record.answer) if isinstance(part, str)]
    of_texts = iter(ngram_hashes(texts, words))

    def ngrams(part: str | CodeTokens) -> NDArray[np.uint64]:
        return next(of_texts) if isinstance(part, str) else part.ngrams(TOKENS_OF_A_WORD * words)

    pieces, sizes = [np.empty(0, np.uint64)], [0]
    for record in records:
        found = [*(ngrams(part) ^ _QUESTION_SALT for part in record.question), *map(ngrams, record.answer)]
        pieces += found
        sizes.append(sum(map(len, found)))
    return _as_sets(np.concatenate(pieces), np.cumsum(sizes, dtype=np.int64))


def _as_sets(ngrams: NDArray[np.uint64], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Each part sorted, with its members once."""
    for start, end in pairwise(offsets.tolist()):
        ngrams[start:end].sort()
    is_new = np.ones(len(ngrams), bool)
    is_new[1:] = ngrams[1:] != ngrams[:-1]
    is_new[offsets[:-1][np.diff(offsets) > 0]] = True
    return ngrams[is_new], np.concatenate([[0], np.cumsum(is_new)])[offsets]


def _without_layout(part: str | CodeTokens) -> str:
    return " ".join(part.split()) if isinstance(part, str) else f"{part.fingerprint():016x}"


@dataclass(frozen=True)
class NgramSets:
    """The n-grams of a block's records, one sorted set behind the other."""

    offsets: NDArray[np.int64]  # [N + 1] where each record's n-grams begin
    ngrams: NDArray[np.uint64]

    def of(self, index: int) -> NDArray[np.uint64]:
        return self.ngrams[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def load(cls, target: Path) -> "NgramSets":
        """Those of saved sketches; the n-grams stay on disk until they are asked for."""
        ngrams = np.asarray(np.load(target.with_suffix(".ngrams"), mmap_mode="r"))  # memmap's own slices are slow
        with np.load(target.with_suffix(".sketch")) as arrays:
            return cls(arrays["offsets"], ngrams)


@dataclass(frozen=True)
class Sketches:
    """N records of a block. `bands` is empty where only exact duplicates are looked for."""

    lines: NDArray[np.int64]  # [N]
    answer_lengths: NDArray[np.int64]  # [N] characters
    exact: NDArray[np.uint64]  # [N]
    bands: NDArray[np.uint64]  # [N, BANDS]
    offsets: NDArray[np.int64]  # [N + 1] where each record's n-grams begin
    ngrams: NDArray[np.uint64]  # the n-grams of all records, one set behind the other

    def save(self, target: Path) -> None:
        """Write the n-grams and the rest. Who reads them in another run needs their checksums: they are not flushed to disk."""
        with atomic_path(target.with_suffix(".ngrams"), lasting=False) as temporary, temporary.open("wb") as file:
            np.save(file, self.ngrams)
        with atomic_path(target.with_suffix(".sketch"), lasting=False) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: value for name, value in vars(self).items() if name != "ngrams"})

    @property
    def sets(self) -> NgramSets:
        return NgramSets(self.offsets, self.ngrams)

    @classmethod
    def load(cls, target: Path) -> "Sketches":
        """The sketches of a block; the n-grams stay on disk until they are asked for."""
        with np.load(target.with_suffix(".sketch")) as arrays:
            return cls(**arrays, ngrams=NgramSets.load(target).ngrams)


def sketch(pairs: Sequence[tuple[int, Example]], config: DedupConfig) -> Sketches:
    parts = [compared(example, config) for _, example in pairs]
    nothing = np.empty(0, np.uint64), np.zeros(len(pairs) + 1, np.int64)
    ngrams, offsets = ngram_sets(parts, config.ngram) if config.near else nothing
    return Sketches(
        lines=np.array([line for line, _ in pairs], np.int64),
        answer_lengths=np.array([len(example.answer) for _, example in pairs], np.int64),
        exact=np.array([part.exact_hash() for part in parts], np.uint64),
        bands=_bands(ngrams, offsets) if config.near else np.empty((len(pairs), 0), np.uint64),
        offsets=offsets,
        ngrams=ngrams,
    )


def _bands(ngrams: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key for each band of each record's MinHash [N, BANDS]."""
    count = len(offsets) - 1
    if not count:
        return np.empty((0, BANDS), np.uint64)
    matrix = minhash_library().RMinHash.digest_matrix_from_flat_token_hashes(
        ngrams, offsets.astype(np.uint64), PERMUTATIONS, _MINHASH_SEED
    )
    values = array("Q")
    for row in matrix.to_rows():
        values.fromlist(row)  # three times as fast as an array of numpy from the list of lists
    rows = np.frombuffer(values, np.uint64).reshape(count, BANDS, PERMUTATIONS // BANDS)
    keys = np.zeros((count, BANDS), np.uint64)
    for position in range(rows.shape[2]):
        keys = (keys ^ rows[:, :, position]) * _MULTIPLIER
        keys ^= keys >> np.uint64(31)
    return keys
