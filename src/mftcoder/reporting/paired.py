"""Compare two models problem by problem: what changed, and whether that is more than chance.

The first metrics file of a task is the "before"; each later file of the task gives a `Change`. Only problems with one answer per
model can be compared in this way.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mftcoder.jsonl import read_json

_Z = 1.959963984540054  # two-sided 95%
LEVEL = 0.05
SHOWN = 3  # problems of a task whose answers the report shows
METHODS = (
    "Each problem is compared with itself: gained are those that only the second model solves, lost those that only the first solves. "
    "p: exact McNemar test (two-sided), with Holm's correction for the number of comparisons; below 0.05 a change counts as more than "
    "chance. Interval of the change: 95%, Agresti and Min (2005)."
)


@dataclass(frozen=True)
class Change:
    """What two models solve of a task's problems. Fractions are between 0 and 1."""

    task: str
    models: tuple[str, str]
    passed: tuple[tuple[bool, bool], ...]  # per problem: by the first, by the second model
    problems: tuple[str, ...]  # the problems' ids
    paths: tuple[Path, Path]  # the metrics files
    p: float = 1.0  # corrected for the number of comparisons

    @property
    def before(self) -> int:
        """Problems that the first model solves."""
        return sum(first for first, _ in self.passed)

    @property
    def after(self) -> int:
        """Problems that the second model solves."""
        return sum(second for _, second in self.passed)

    @property
    def shown(self) -> list[int]:
        """Three problems to show: the first gained, the first lost and the first unchanged one, then the next of each."""
        gained, lost = self.gained, self.lost
        stayed = [number for number in range(len(self.passed)) if number not in {*gained, *lost}]
        rounds = itertools.zip_longest(gained, lost, stayed)
        return [number for three in rounds for number in three if number is not None][:SHOWN]

    @property
    def gained(self) -> list[int]:
        """Numbers of the problems that only the second model solves."""
        return [number for number, pair in enumerate(self.passed) if pair == (False, True)]

    @property
    def lost(self) -> list[int]:
        """Numbers of the problems that only the first model solves."""
        return [number for number, pair in enumerate(self.passed) if pair == (True, False)]

    @property
    def value(self) -> float:
        """The change of the fraction of solved problems."""
        return (self.after - self.before) / len(self.passed)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        return difference_interval(len(self.gained), len(self.lost), len(self.passed))

    @property
    def is_more_than_chance(self) -> bool:
        """Whether such an uneven change would be rare if the two models were equally good."""
        return self.p < LEVEL

    @property
    def points(self) -> str:
        """`+16 (+9 to +23)`: the change and its 95% interval in points of a hundred."""
        value, low, high = (
            "0" if not round(100 * bound) else f"{round(100 * bound):+d}" for bound in (self.value, *self.interval)
        )
        return f"{value} ({low} to {high})"

    @property
    def sentence(self) -> str:
        """`exam-repair: 10 of 130 problems before, 31 after: +16 points (95% interval +9 to +23), more than chance (p = 0.0002).`"""
        how = self.points.replace(" (", " points (95% interval ")
        verdict = "more than chance" if self.is_more_than_chance else "possible by chance"
        count = f"{self.before} of {len(self.passed)} problems before, {self.after} after"
        return f"{self.task}: {count}: {how}, {verdict} ({p_text(self.p)})."


def read_changes(paths: Sequence[Path]) -> list[Change]:
    """A change for every metrics file after the first of its task, if both have the same problems with one answer each."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    changes = []
    for path in dict.fromkeys(paths):
        metrics = read_json(path)
        if not _is_paired(metrics):
            continue
        before_path, before = first.setdefault(metrics["task"], (path, metrics))
        ids = tuple(str(row["id"]) for row in metrics["problems"])
        if before_path != path and ids == tuple(str(row["id"]) for row in before["problems"]):
            rows = zip(before["problems"], metrics["problems"], strict=True)
            passed = tuple((bool(old["passed"]), bool(new["passed"])) for old, new in rows)
            models = str(before["model"]), str(metrics["model"])
            changes.append(Change(metrics["task"], models, passed, ids, (before_path, path)))
    return corrected(changes)


def _is_paired(metrics: Any) -> bool:
    """Whether the file has the status of one answer for each problem."""
    named = isinstance(metrics, dict) and isinstance(metrics.get("task"), str) and "model" in metrics
    rows = metrics.get("problems") if named else None
    return isinstance(rows, list) and bool(rows) and all(map(_is_paired_row, rows))


def _is_paired_row(row: Any) -> bool:
    statuses = row.get("statuses") if isinstance(row, dict) and {"id", "passed"} <= row.keys() else None
    return isinstance(statuses, list) and len(statuses) == 1


def corrected(changes: Sequence[Change]) -> list[Change]:
    """The changes with their p, corrected by Holm's method (1979): of m values the smallest times m, the next times m - 1, and so
    on, each at least as large as the one before."""
    raw = [mcnemar(len(change.gained), len(change.lost)) for change in changes]
    found, highest = list(changes), 0.0
    for rank, number in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
        highest = max(highest, min(1.0, raw[number] * (len(raw) - rank)))
        found[number] = replace(changes[number], p=highest)
    return found


def mcnemar(gained: int, lost: int) -> float:
    """The probability of a split at least as uneven if gains and losses were equally likely: 5 and 0 -> 2/32 = 0.0625."""
    total = gained + lost
    tail = sum(math.comb(total, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def difference_interval(gained: int, lost: int, problems: int) -> tuple[float, float]:
    """The 95% interval of the difference of two fractions of the same problems: Wald's interval with half a problem added to each of
    the four outcomes (Agresti and Min 2005, Statistics in Medicine 24)."""
    more, less, count = gained + 0.5, lost + 0.5, problems + 2
    value = (more - less) / count
    spread = _Z * math.sqrt(more + less - (more - less) ** 2 / count) / count
    return max(-1.0, value - spread), min(1.0, value + spread)


def p_text(p: float) -> str:
    """`p = 0.03`, `p < 0.0001`."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
