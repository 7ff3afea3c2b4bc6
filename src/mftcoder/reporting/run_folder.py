"""Read a run folder of `mft train`, also while the run goes on or after it was killed, and the folder of an `mft improve`.

Only metrics.jsonl is required; a missing config, summary or data file leaves its part of the report empty.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder.errors import DataError
from mftcoder.jsonl import read_json

Record = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report needs from one run folder."""

    name: str
    folder: Path
    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    balance: tuple[Record, ...]  # a balancer's inputs and weights; none with fixed weights
    torn_lines: int  # invalid lines of metrics.jsonl; a killed run may leave one
    config: str
    versions: dict[str, Any]
    data: dict[str, Any]
    summary: dict[str, Any]
    checkpoints: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """The tasks' names in the order of their first records."""
        names: dict[str, None] = {}
        for record in (*self.validation, *self.train):
            names.update(dict.fromkeys(record.get("losses") or {}))
        return list(names)


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """The run in `folder`; DataError if it is not a run folder."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        what = "no such folder" if not folder.exists() else "is not a run folder: it has no metrics.jsonl"
        raise DataError(f"{folder}: {what}. Give the output_dir of a training run")
    records, torn = _records(metrics)
    config = folder / "config.yaml"
    return RunRecord(
        name=name or folder.resolve().name,
        folder=folder,
        train=tuple(record for record in records if record.get("kind") == "train"),
        validation=tuple(record for record in records if record.get("kind") == "validation"),
        balance=tuple(record for record in records if record.get("kind") == "balance"),
        torn_lines=torn,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        versions=_mapping(folder / "versions.json"),
        data=_mapping(folder / "data.json"),
        summary=_mapping(folder / "summary.json"),
        checkpoints=_checkpoints(folder / "checkpoints"),
    )


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """Several runs; those with equal folder names get their whole paths as names. DataError lists all problems."""
    problems: list[str] = []
    runs = []
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        try:
            runs.append(read_run(folder, str(folder) if names.count(name) > 1 else name))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return runs


@dataclass(frozen=True)
class Improvement:
    """The rounds of one `mft improve`, as improve.json has them."""

    name: str
    rounds: tuple[Record, ...]
    runs: tuple[Path, ...]  # its run folders, in the order of the rounds
    metrics: tuple[Path, ...]  # the scores of the exam, those of the given model first

    @property
    def has_groups(self) -> bool:
        """Whether the rounds trained on groups with rewards (grpo)."""
        return any(number(entry.get("mean_reward")) is not None for entry in self.rounds)


def read_improvement(folder: Path) -> Improvement | None:
    """The `mft improve` whose `--out` is `folder`; None if it is none."""
    found = _mapping(folder / "improve.json")
    if not found:
        return None
    rounds = tuple(entry for entry in found.get("rounds") or () if isinstance(entry, dict))
    scored = ("base", *(f"round-{entry.get('number')}" for entry in rounds))
    places = (folder / "run", *(folder / name / "run" for name in scored))
    return Improvement(
        folder.resolve().name,
        rounds,
        tuple(path for path in places if (path / "metrics.jsonl").is_file()),
        tuple(path for name in scored for path in sorted((folder / name / "scores").glob("metrics_*.json"))),
    )


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def series(records: tuple[Record, ...], *keys: str) -> list[tuple[float, float]]:
    """`(step, value)` of the records with a number at `keys`: `series(run.train, "losses", "tests")`."""
    points = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        step, found = number(record.get("step")), number(value)
        if step is not None and found is not None:
            points.append((step, found))
    return points


def _records(path: Path) -> tuple[list[Record], int]:
    records, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # or nested too deeply
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            torn += 1
    return records, torn


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _checkpoints(folder: Path) -> tuple[str, ...]:
    """Names of the checkpoint folders, in the order of their steps, without hidden ones, which are still being written."""
    if not folder.is_dir():
        return ()
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return tuple(sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]))
