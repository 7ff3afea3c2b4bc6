"""Which of the records that are alike is kept: the first in an order of quality, and no other that is near to a kept one.

Candidates share a MinHash band; the verdict is the exact Jaccard similarity of their n-grams. So no two kept records are near-duplicates,
in training, in validation, or between them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mftcoder.curation.duplicates.sketches import DedupConfig, Sketches


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


def find_duplicates(parts: Sequence[Part], config: DedupConfig) -> Iterator[Duplicate]:
    """The records to drop. Records come in the order: validation before training, the longest answer first, the input's order."""
    sizes = [len(part.sketches.lines) for part in parts]
    if not sum(sizes):
        return
    block = np.repeat(np.arange(len(parts)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    exact = np.concatenate([part.sketches.exact for part in parts])
    scope = np.repeat([part.task if config.within == "task" else 0 for part in parts], sizes)
    buckets = _buckets(np.concatenate([part.sketches.bands for part in parts]), scope)
    seen: dict[tuple[int, int], int] = {}  # the first record of each text
    members: dict[int, list[int]] = {}  # the kept records of each bucket
    for record in _order(parts, sizes, config):
        key = (int(exact[record]), int(scope[record]))
        mine = [int(bucket) for bucket in buckets[record] if bucket >= 0]
        if key in seen:
            found: tuple[int, float] | None = (seen[key], 1.0)
        else:
            candidates = sorted({other for bucket in mine for other in members.get(bucket, ())})
            found = _nearest(record, candidates, parts, block, index, config.threshold)
        if found is not None:
            other, similarity = found
            places = [(int(block[number]), int(index[number])) for number in (record, other)]
            yield Duplicate(places[0], places[1], similarity, key in seen)
            continue
        seen[key] = record
        for bucket in mine:
            members.setdefault(bucket, []).append(record)


def _order(parts: Sequence[Part], sizes: Sequence[int], config: DedupConfig) -> NDArray[np.int64]:
    training = np.repeat([not part.is_validation for part in parts], sizes)
    lengths = np.concatenate([part.sketches.answer_lengths for part in parts])
    worth = -lengths if config.keep == "longest" else np.zeros_like(lengths)
    return np.lexsort((np.arange(len(lengths)), worth, training))


def _buckets(bands: NDArray[np.uint64], scope: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number for each band's key that several records have, -1 for one that is alone [N, BANDS]."""
    buckets = np.full(bands.shape, -1, np.int32)
    used = 0
    salted = scope.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band] ^ salted, return_inverse=True, return_counts=True)
        numbers = np.full(len(counts), -1, np.int32)
        shared = np.flatnonzero(counts > 1)
        numbers[shared] = np.arange(used, used + len(shared))
        used += len(shared)
        buckets[:, band] = numbers[inverse]
    return buckets


def _nearest(
    record: int,
    candidates: Sequence[int],
    parts: Sequence[Part],
    block: NDArray[np.int64],
    index: NDArray[np.int64],
    threshold: float,
) -> tuple[int, float] | None:
    """The candidate with the greatest similarity, if that reaches the threshold; of equal ones the first."""
    if not candidates:
        return None
    mine = _set(parts, block, index, record)
    best, nearest = 0.0, -1
    for other in candidates:
        similarity = jaccard(mine, _set(parts, block, index, other), least=max(best, threshold))
        if similarity >= threshold and similarity > best:
            best, nearest = similarity, other
    return (nearest, best) if nearest >= 0 else None


def _set(parts: Sequence[Part], block: NDArray[np.int64], index: NDArray[np.int64], record: int) -> NDArray[np.uint64]:
    sketches = parts[block[record]].sketches
    place = index[record]
    return sketches.ngrams[sketches.offsets[place] : sketches.offsets[place + 1]]


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64], *, least: float = 0.0) -> float:
    """Shared members over all members of two sorted sets; 0 without counting where the sizes alone rule `least` out."""
    small, large = sorted((len(one), len(other)))
    if not large or small < least * large:
        return 0.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (small + large - shared)
