"""Read the scores in metrics_<task>_<model>.json files of `mft evaluate`: the k, value and interval of every pass@k."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder.errors import DataError
from mftcoder.jsonl import has_half_character, read_json
from mftcoder.reporting.run_folder import HALF_CHARACTER, number


@dataclass(frozen=True)
class Score:
    """One model's pass@k on one benchmark, as fractions between 0 and 1."""

    task: str
    model: str
    k: int
    value: float
    low: float | None
    high: float | None
    problems: int | None
    change: float | None = None  # relative to the first model of the same task and k
    source: str = ""  # the benchmark's data file and its checksum


def find_metrics(folder: Path) -> list[Path]:
    """The metrics files in a run folder, or one or two levels below it."""
    found = [path for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}metrics_*.json")]
    return sorted(found)


def read_scores(paths: list[Path]) -> list[Score]:
    """All scores by task, within a task in the order of the files, so that the first file of a task is its "before"."""
    scores: list[Score] = []
    problems: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            scores += _scores_of(path)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    order = {task: position for position, task in enumerate(dict.fromkeys(score.task for score in scores))}
    scores.sort(key=lambda score: (order[score.task], score.k))
    return [_with_change(score, scores) for score in scores]


def _with_change(score: Score, scores: list[Score]) -> Score:
    first = next(other for other in scores if (other.task, other.k) == (score.task, score.k))
    change = None if first is score else score.value - first.value
    return Score(**{**vars(score), "change": change})


def _scores_of(path: Path) -> list[Score]:
    metrics = read_json(path)
    table = metrics.get("scores", metrics) if isinstance(metrics, dict) else None
    if not isinstance(table, dict) or not any(_k_of(key) for key in table):
        raise DataError(f"{path}: it holds no pass@k; give a metrics file that mft evaluate wrote")
    if has_half_character(metrics):
        raise DataError(f"{path}: {HALF_CHARACTER}")
    task, model = _names(path, metrics)
    settings = metrics.get("settings")
    source = str(settings.get("data", "")) if isinstance(settings, dict) else ""
    found = []
    for key, raw in table.items():
        k, score = _k_of(key), raw if isinstance(raw, dict) else {"value": raw}
        value = number(score.get("value"))
        if k is not None and value is not None:
            problems = number(score.get("problems"))
            count = None if problems is None else int(problems)
            low, high = number(score.get("low")), number(score.get("high"))
            found.append(Score(task, model, k, value, low, high, count, source=source))
    return found


def _names(path: Path, metrics: dict[str, Any]) -> tuple[str, str]:
    """Task and model from the content of the file, or else from its name."""
    parts = path.stem.removeprefix("metrics_").partition("_")
    return str(metrics.get("task") or parts[0]), Path(str(metrics.get("model") or parts[2] or "model")).name


def _k_of(key: str) -> int | None:
    match = re.fullmatch(r"pass@(\d+)", str(key))
    return int(match.group(1)) if match else None
