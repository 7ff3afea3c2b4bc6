"""Read a run folder of `mft train`, also while the run goes on or after it was killed, and the folder of an `mft improve`.

Only metrics.jsonl is required; a missing config, summary or data file leaves its part of the report empty. A file whose values have
a wrong type, such as one edited by hand, is an error that names the value.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mftcoder.config.problems import problem_lines, shown
from mftcoder.errors import DataError
from mftcoder.jsonl import has_half_character, read_json

Record = dict[str, Any]
HALF_CHARACTER = "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
MOST_PROBLEMS = 20  # of metrics.jsonl, which has a line for each step


def _number_or_null(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"must be a number, not {shown(value)}")


Number = Annotated[Any, AfterValidator(_number_or_null)]
Count = Annotated[int, Field(ge=0, lt=10**15)]


class Shape(BaseModel):
    """What a report uses of a file, and its types. The file's other fields are not looked at."""

    model_config = ConfigDict(strict=True)


class MetricsLine(Shape):
    """A line of metrics.jsonl."""

    kind: str = ""
    step: Number = None
    loss: Number = None
    seconds: Number = None
    learning_rate: Number = None
    grad_norm: Number = None
    tokens_per_second: Number = None
    losses: dict[str, Number] | None = None
    weights: dict[str, Number] | None = None
    rewards: dict[str, dict[str, Number]] | None = None
    signals: dict[str, dict[str, Number]] | None = None


class DataOrigin(Shape):
    """Of a task in data.json: its data cards, and the benchmarks that were kept out, with their sources."""

    cards: list[str] = []
    exams: dict[str, str] | None = None


class DataFile(Shape):
    """data.json."""

    fingerprint: str | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    curation: dict[str, DataOrigin] | None = None


class BestMetric(Shape):
    """The best value of the run's metric, and its step."""

    step: Number = None
    value: Number = None


class SummaryFile(Shape):
    """summary.json."""

    steps: Number = None
    seconds: Number = None
    stopped_because: str = ""
    best: BestMetric | None = None


class RoundEntry(Shape):
    """A round in improve.json."""

    number: Count
    problems: Annotated[Count, Field(ge=1)]
    rollouts: Annotated[Count, Field(ge=1)]
    passed: Count
    kept: Count
    solved: dict[str, Count]
    left_out: dict[str, Count] = {}
    mean_reward: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _groups_are_counted(self) -> "RoundEntry":
        if self.mean_reward is not None and "equal" not in self.left_out:
            raise ValueError("left_out.equal: is required beside mean_reward")
        return self


class ImproveFile(Shape):
    """improve.json."""

    rounds: list[RoundEntry]

    @model_validator(mode="after")
    def _one_method(self) -> "ImproveFile":
        if len({entry.mean_reward is None for entry in self.rounds}) > 1:
            raise ValueError("rounds: some have a mean_reward and some have none")
        return self


class AnyFile(Shape):
    """versions.json: any values."""


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
        versions=_mapping(folder / "versions.json", AnyFile),
        data=_mapping(folder / "data.json", DataFile),
        summary=_mapping(folder / "summary.json", SummaryFile),
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
    found = _mapping(folder / "improve.json", ImproveFile)
    if not found:
        return None
    rounds = tuple(found["rounds"])
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
    records, torn, problems = [], 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # or nested too deeply
            record = None
        if isinstance(record, dict):
            problems += _problems(f"{path}:{number}", record, MetricsLine)
            records.append(record)
        elif line.strip():
            torn += 1
        if len(problems) >= MOST_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)
    return records, torn


def _mapping(path: Path, shape: type[Shape]) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file. DataError if its values have wrong types."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold an object, not {shown(value)}")
    if problems := _problems(str(path), value, shape):
        raise DataError(*problems)
    return value


def _problems(origin: str, value: dict[str, Any], shape: type[Shape]) -> list[str]:
    if has_half_character(value):
        return [f"{origin}: {HALF_CHARACTER}"]
    try:
        shape.model_validate(value)
    except ValidationError as error:
        return problem_lines(error, value, origin=origin, suggest=lambda _: "")
    return []


def _checkpoints(folder: Path) -> tuple[str, ...]:
    """Names of the checkpoint folders, in the order of their steps, without hidden ones, which are still being written."""
    if not folder.is_dir():
        return ()
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return tuple(sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]))
