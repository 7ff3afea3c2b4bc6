"""Counts of sets -> the summary as plain values: shares, percentiles, records that repeat, what the sets have in common.

A set is the training or the validation part of a task.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mftcoder.curation.duplicates.choice import Part, find_duplicates
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.duplicates.sketches import Sketches
from mftcoder.curation.statistics import ordered
from mftcoder.curation.stats.count import Counts

PERCENTILES = (50, 90, 95, 99)
_EDGES = [-1, 0, *sorted({int(2 ** (quarter / 4)) for quarter in range(200)})]
"""Ends of the bins of a histogram: four for each doubling, so that they are equally wide on a logarithmic axis."""


@dataclass
class Counted:
    """A set with its counts and the files of its sketches, a file for each block."""

    task: str
    split: str  # train or validation
    counts: Counts = field(default_factory=Counts)
    sketches: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`chat`, or `chat (validation)`."""
        return self.task if self.split == "train" else f"{self.task} ({self.split})"


def summary(sets: Sequence[Counted], compared: DedupConfig, max_length: int | None) -> dict[str, Any]:
    """The sets, all of them together, and their overlap."""
    total = Counted("all", "train")
    for one in sets:
        total.counts.merge(one.counts)
    texts = [_texts(one) for one in sets]
    repeats = _Repeats(sets, compared)
    return {
        "max_length": max_length,
        "near": compared.near,
        "sets": [_set(one, _repeated(own), repeats, max_length) for one, own in zip(sets, texts, strict=True)],
        "all": _set(total, _repeated(_concatenated(texts)), repeats, max_length),
        "overlap": list(_overlap(sets, texts, repeats)),
    }


def _set(one: Counted, repeated: int, repeats: "_Repeats", max_length: int | None) -> dict[str, Any]:
    counts = one.counts
    return {
        "name": one.name,
        "task": one.task,
        "split": one.split,
        "records": counts.statistics.records,
        "unusable": counts.unusable,
        "problems": counts.problems,
        "bytes": counts.bytes,
        "exact_duplicates": repeated,
        "near_duplicates": repeats.near(one.name, one.name),
        "lengths": {unit: lengths_of(lengths) for unit, lengths in counts.lengths.items()},
        "cut": None
        if max_length is None
        else {name.replace(" ", "_"): counts.cut[name] for name in ("records", "tokens", "trained tokens")},
        "roles": dict(ordered(counts.roles)),
        "turns": {str(number): count for number, count in sorted(counts.statistics.turns.items())},
        "languages": dict(ordered(counts.statistics.languages)),
        "licences": dict(ordered(counts.statistics.licences)),
    }


def lengths_of(lengths: Mapping[int, int]) -> dict[str, Any]:
    """Sum, mean and nearest-rank percentiles, and a histogram: `[more than, up to, records]` for each bin that is not empty."""
    records = sum(lengths.values())
    total = sum(length * count for length, count in lengths.items())
    found = list(_nearest_ranks(sorted(lengths.items()), records))
    bins: Counter[int] = Counter()
    for length, count in lengths.items():
        bins[bisect_left(_EDGES, length)] += count
    return {
        "sum": total,
        "mean": round(total / records, 2),
        "min": min(lengths),
        **{f"p{percent}": value for percent, value in zip(PERCENTILES, found, strict=True)},
        "max": max(lengths),
        "histogram": [[_EDGES[place - 1], _EDGES[place], count] for place, count in sorted(bins.items())],
    }


def _nearest_ranks(lengths: Sequence[tuple[int, int]], records: int) -> Iterator[int]:
    """For each of PERCENTILES, the least length that this share of the records does not exceed."""
    ends = np.cumsum([count for _, count in lengths])
    for percent in PERCENTILES:
        rank = -(-percent * records // 100)
        yield lengths[int(np.searchsorted(ends, rank))][0]


def _texts(one: Counted) -> NDArray[np.uint64]:
    """A hash of each record; equal for texts that differ in whitespace only."""
    return _concatenated([Sketches.load(path).exact for path in one.sketches])


def _concatenated(arrays: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate([*arrays, np.empty(0, np.uint64)])


def _repeated(texts: NDArray[np.uint64]) -> int:
    """Records whose text stands in the set before already."""
    return len(texts) - len(np.unique(texts))


class _Repeats:
    """The records that a near-duplicate keeps out, by the set of the record and the set of the one that is kept instead."""

    def __init__(self, sets: Sequence[Counted], compared: DedupConfig):
        self.compared = compared
        self.pairs: Counter[tuple[str, str]] = Counter()
        if not compared.near:
            return
        names = [one.name for one in sets for _ in one.sketches]
        parts = [Part(Sketches.load(path), 0, one.split == "validation") for one in sets for path in one.sketches]
        for found in find_duplicates(parts, compared):
            if not found.is_exact:
                self.pairs[names[found.dropped[0]], names[found.kept[0]]] += 1

    def near(self, one: str, other: str) -> int | None:
        """Near-duplicates of one set of a record of the other one, in both directions; of `all`, those of any set. None if not counted."""
        if not self.compared.near:
            return None
        return self.pairs.total() if one == "all" else sum(self.pairs[pair] for pair in {(one, other), (other, one)})


def _overlap(
    sets: Sequence[Counted], texts: Sequence[NDArray[np.uint64]], repeats: _Repeats
) -> Iterator[dict[str, Any]]:
    """The pairs of sets that have a text in common, and how many different ones."""
    for (one, own), (other, others) in combinations(zip(sets, texts, strict=True), 2):
        exact = len(np.intersect1d(own, others))
        near = repeats.near(one.name, other.name)
        if exact or near:
            yield {"sets": [one.name, other.name], "exact": exact, "near": near}
