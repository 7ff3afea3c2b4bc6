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
    places = [(number, index) for number, size in enumerate(sizes) for index in range(size)]
    exact = np.concatenate([part.sketches.exact for part in parts])
    scope = np.repeat([part.task if config.within == "task" else 0 for part in parts], sizes)
    texts = _numbered(exact, scope)
    buckets = _buckets(np.concatenate([part.sketches.bands for part in parts]), scope)
    is_alone = (texts < 0) & (buckets < 0).all(axis=1)
    order = _order(parts, sizes, config)
    order = order[~is_alone[order]]  # a record that shares nothing is kept, and no other one is held against it
    seen: dict[int, int] = {}  # the first record of each text
    members: dict[int, list[int]] = {}  # the kept records of each bucket
    for record, text, row in zip(order.tolist(), texts[order].tolist(), buckets[order], strict=True):
        mine = [bucket for bucket in row.tolist() if bucket >= 0]
        if text in seen:
            found: tuple[int, float] | None = (seen[text], 1.0)
        else:
            candidates = sorted({other for bucket in mine for other in members.get(bucket, ())})
            found = _nearest(record, candidates, parts, places, config.threshold)
        if found is not None:
            other, similarity = found
            yield Duplicate(places[record], places[other], similarity, text in seen)
            continue
        if text >= 0:
            seen[text] = record
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
    for band in range(bands.shape[1]):
        numbers = _numbered(bands[:, band], scope)
        buckets[:, band] = np.where(numbers >= 0, numbers + used, -1)
        used += int(numbers.max()) + 1
    return buckets


def _numbered(keys: NDArray[np.uint64], scope: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number from 0 on for each key that several records of a scope have, -1 for one that is alone [N]."""
    salted = keys ^ (scope.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    _, inverse, counts = np.unique(salted, return_inverse=True, return_counts=True)
    numbers = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1)
    return numbers[inverse].astype(np.int32)


def _nearest(
    record: int,
    candidates: Sequence[int],
    parts: Sequence[Part],
    places: Sequence[tuple[int, int]],
    threshold: float,
) -> tuple[int, float] | None:
    """The candidate with the greatest similarity, if that reaches the threshold; of equal ones the first."""
    if not candidates:
        return None
    mine = _set(parts, *places[record])
    best, nearest = 0.0, -1
    for other in candidates:
        similarity = jaccard(mine, _set(parts, *places[other]), least=max(best, threshold))
        if similarity >= threshold and similarity > best:
            best, nearest = similarity, other
    return (nearest, best) if nearest >= 0 else None


def _set(parts: Sequence[Part], block: int, index: int) -> NDArray[np.uint64]:
    sketches = parts[block].sketches
    return sketches.ngrams[sketches.offsets[index] : sketches.offsets[index + 1]]


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64], *, least: float = 0.0) -> float:
    """Shared members over all members of two sorted sets; 0 without counting where the sizes alone rule `least` out."""
    small, large = sorted((len(one), len(other)))
    if not large or small < least * large:
        return 0.0
    both = np.concatenate((one, other))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (small + large - shared)
