"""Which of the records that are alike is kept: the first in an order of quality, and no other that is near to a kept one.

Candidates share a MinHash band; the verdict is the exact Jaccard similarity of their n-grams. So no two kept records are near-duplicates,
in training, in validation, or between them. Records that are connected by no chain of candidates are chosen apart, on any core.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.duplicates.sketches import NgramSets, Sketches

_INDEX_BITS = 32
_RECORDS_OF_A_GROUP, _MOST_GROUPS = 4096, 64


@dataclass(frozen=True)
class Part:
    """The sketches of one block, the number of its task, and whether it validates."""

    sketches: Sketches
    task: int
    is_validation: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A record to drop and the kept one that it is like; both as (block, index in the block)."""

    dropped: tuple[int, int]
    kept: tuple[int, int]
    similarity: float
    is_exact: bool


@dataclass(frozen=True)
class Candidates:
    """M records, the best first, each with the numbers of its text and of its bands; -1 for what no other record has."""

    records: NDArray[np.int64]  # [M] block and index in the block, as one number
    texts: NDArray[np.int32]  # [M]
    buckets: NDArray[np.int32]  # [M, BANDS]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def blocks(self) -> list[int]:
        """The blocks that these records are of."""
        return list(map(int, np.unique(self.records >> _INDEX_BITS)))

    def taken(self, which: NDArray[np.int64]) -> "Candidates":
        return Candidates(**{name: values[which] for name, values in vars(self).items()})


def find_duplicates(parts: Sequence[Part], config: DedupConfig) -> Iterator[Duplicate]:
    """The records to drop. Records come in the order: validation before training, the longest answer first, the input's order."""
    sets = {number: part.sketches.sets for number, part in enumerate(parts)}
    return choose(candidates(parts, config), sets, config.threshold)


def candidates(parts: Sequence[Part], config: DedupConfig) -> Candidates:
    """The records that share something with another one. The others are kept, and nothing is held against them."""
    sizes = [len(part.sketches.lines) for part in parts]
    if not sum(sizes):
        empty = np.empty(0, np.int32)
        return Candidates(empty.astype(np.int64), empty, empty.reshape(0, 1))
    scope = np.repeat([part.task if config.within == "task" else 0 for part in parts], sizes)
    found = Candidates(
        np.concatenate([np.arange(size) + (block << _INDEX_BITS) for block, size in enumerate(sizes)]),
        _numbered(np.concatenate([part.sketches.exact for part in parts]), scope),
        _buckets(np.concatenate([part.sketches.bands for part in parts]), scope),
    )
    is_alone = (found.texts < 0) & (found.buckets < 0).all(axis=1)
    order = _order(parts, sizes, config)
    return found.taken(order[~is_alone[order]])


def groups(found: Candidates) -> list[Candidates]:
    """The candidates in groups that can be chosen from apart: no record of a group shares anything with one of another group."""
    if not len(found):
        return []
    labels = _connected(found)
    by_label = np.argsort(labels, kind="stable")
    wanted = min(_MOST_GROUPS, -(-len(found) // _RECORDS_OF_A_GROUP))
    ends = np.searchsorted(labels[by_label], labels[by_label[np.arange(1, wanted) * len(found) // wanted]])
    cuts = sorted({0, *ends.tolist(), len(found)})
    return [found.taken(by_label[start:end]) for start, end in pairwise(cuts)]


def _connected(found: Candidates) -> NDArray[np.int64]:
    """For each record the first one that a chain of shared texts and bands leads to [M]."""
    keys = np.column_stack([found.texts, np.where(found.buckets >= 0, found.buckets + found.texts.max() + 1, -1)])
    records, columns = np.nonzero(keys >= 0)
    keys = keys[records, columns]
    labels, known = np.arange(len(found)), None
    while known is None or (labels != known).any():
        known = labels
        first = np.full(keys.max() + 1, len(found))
        np.minimum.at(first, keys, known[records])
        labels = known.copy()
        np.minimum.at(labels, records, first[keys])
        labels = labels[labels]
    return labels


def choose(found: Candidates, sets: Mapping[int, NgramSets], threshold: float) -> Iterator[Duplicate]:
    """The records to drop, in the order of the candidates. `sets` has the n-grams by block."""
    seen: dict[int, int] = {}  # the first record of each text
    members: dict[int, list[int]] = {}  # the kept records of each bucket
    kept: dict[int, NDArray[np.uint64]] = {}  # their n-grams
    for row, (record, text) in enumerate(zip(found.records.tolist(), found.texts.tolist(), strict=True)):
        if text in seen:
            yield Duplicate(_place(record), _place(seen[text]), 1.0, True)
            continue
        block, index = _place(record)
        ngrams = sets[block].of(index)
        mine = found.buckets[row][found.buckets[row] >= 0].tolist()
        others = sorted({other for bucket in mine for other in members.get(bucket, ())})
        nearest, similarity = _nearest(ngrams, [(other, kept[other]) for other in others], threshold)
        if nearest is not None:
            yield Duplicate((block, index), _place(nearest), similarity, False)
            continue
        kept[record] = ngrams
        if text >= 0:
            seen[text] = record
        for bucket in mine:
            members.setdefault(bucket, []).append(record)


def _place(record: int) -> tuple[int, int]:
    """Block, and index in the block."""
    return record >> _INDEX_BITS, record & ((1 << _INDEX_BITS) - 1)


def _order(parts: Sequence[Part], sizes: Sequence[int], config: DedupConfig) -> NDArray[np.int64]:
    training = np.repeat([not part.is_validation for part in parts], sizes)
    lengths = np.concatenate([part.sketches.answer_lengths for part in parts])
    worth = -lengths if config.keep == "longest" else np.zeros_like(lengths)
    return np.lexsort((np.arange(len(lengths)), worth, training))


def _buckets(bands: NDArray[np.uint64], scope: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number for each band's key that several records have, -1 for one that is alone [N, BANDS]."""
    buckets = np.full(bands.shape, -1, np.int32)
    used = 0
    for band in range(bands.shape[1]):
        numbers = _numbered(bands[:, band], scope)
        buckets[:, band] = np.where(numbers >= 0, numbers + used, -1)
        used += int(numbers.max()) + 1
    return buckets


def _numbered(keys: NDArray[np.uint64], scope: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number from 0 on for each key that several records of a scope have, -1 for one that is alone [N]."""
    salted = keys ^ (scope.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    shared = _perhaps_shared(salted)
    _, inverse, counts = np.unique(salted[shared], return_inverse=True, return_counts=True)
    numbers = np.full(len(keys), -1, np.int32)
    numbers[shared] = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1)[inverse]
    return numbers


def _perhaps_shared(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places of all hashes that occur twice, and of some others: those whose highest bits occur twice. Most records share nothing."""
    bits = min(24, 2 + len(hashes).bit_length())
    slots = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    return np.flatnonzero(np.bincount(slots, minlength=1 << bits)[slots] > 1)


def _nearest(
    mine: NDArray[np.uint64], others: Sequence[tuple[int, NDArray[np.uint64]]], threshold: float
) -> tuple[int | None, float]:
    """The record with the greatest similarity, if that reaches the threshold; of equal ones the first."""
    best, nearest = 0.0, None
    for other, ngrams in others:
        similarity = jaccard(mine, ngrams, least=max(best, threshold))
        if similarity >= threshold and similarity > best:
            best, nearest = similarity, other
    return nearest, best


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64], *, least: float = 0.0) -> float:
    """Shared members over all members of two sorted sets; 0 without counting where the sizes alone rule `least` out."""
    small, large = len(one), len(other)
    if small > large:
        small, large = large, small
    if not large or small < least * large:
        return 0.0
    both = np.concatenate((one, other))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (small + large - shared)
