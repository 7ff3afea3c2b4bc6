"""Read generations files: a model's answers to a benchmark.

Formats: a JSON list with a list of strings (the samples) per problem, or JSON Lines with `task_id` and `generation` or `completion`.
All mistakes of a file are reported at once, and no answer is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.problem import Benchmark
from mftcoder.errors import GenerationError, MftError
from mftcoder.jsonl import first_bytes, read_json, read_jsonl

Answers = list[list[str]]  # [problems][samples]

_TEXT_FIELDS = ("generation", "completion")
_SAME_PROBLEMS = {"Python": "HumanEval", "HumanEval": "Python"}
"""HumanEval-X and its relatives call a problem `Python/0` that HumanEval itself calls `HumanEval/0`."""


def model_of(path: Path, task: str) -> str:
    """The model in `generations_{task}_{model}.json`; the file's name without its suffix if it has another form."""
    stem = re.sub(r"\.jsonl?(\.gz)?$", "", path.name)
    return stem.removeprefix("generations_").removeprefix(f"{task}_") or stem


def task_of(path: Path, known: Sequence[str]) -> str | None:
    """The task in `generations_{task}_{model}.json`, the longest known name that fits; None if no name fits."""
    rest = path.name.removeprefix("generations_")
    return (
        max((task for task in known if rest.startswith(f"{task}_")), key=len, default=None)
        if rest != path.name
        else None
    )


def read_generations(path: Path, benchmark: Benchmark) -> Answers:
    """The answers in `path`, in the benchmark's order. GenerationError with all mistakes of the file."""
    if not path.is_file():
        raise GenerationError(f"{path}: no such file")
    if first_bytes(path, 4096).lstrip().startswith(b"["):  # one JSON list; otherwise its lines are objects
        return _from_list(path, read_json(path), benchmark)
    return _from_records(path, benchmark)


def _from_list(path: Path, content: Any, benchmark: Benchmark) -> Answers:
    problems = [f"{path}: {problem}" for problem in list_problems(content, len(benchmark.problems))]
    if problems:
        raise MftError.collect(problems)
    return content


def list_problems(content: Any, expected: int) -> list[str]:
    """The mistakes in what should be a list of lists of strings for `expected` problems."""
    if not isinstance(content, list):
        return [f"expected a JSON list, found {_kind(content)}"]
    found = []
    if len(content) != expected:
        found.append(f"{len(content)} problems, but the benchmark has {expected}")
    for number, samples in enumerate(content):
        if not isinstance(samples, list):
            found.append(f"problem {number}: expected a list of samples, found {_kind(samples)}")
        elif not samples:
            found.append(f"problem {number}: no sample")
        else:
            wrong = [index for index, text in enumerate(samples) if not isinstance(text, str)]
            found += [
                f"problem {number}, sample {index}: expected a string, found {_kind(samples[index])}" for index in wrong
            ]
    return found


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


def _from_records(path: Path, benchmark: Benchmark) -> Answers:
    answers: dict[str, list[str]] = {problem.id: [] for problem in benchmark.problems}
    problems = []
    for number, record in read_jsonl(path):
        try:
            answers[_problem_id(record, answers)] += _texts(record)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    missing = [name for name, samples in answers.items() if not samples]
    if missing and not problems:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(
            f"{path}: no answer to {len(missing)} of {len(answers)} problems: {shown}. --limit N scores only the first N."
        )
    if problems:
        raise MftError.collect(problems)
    return list(answers.values())


def _problem_id(record: Any, answers: Mapping[str, Any]) -> str:
    if not isinstance(record, dict) or "task_id" not in record:
        raise ValueError("expected an object with 'task_id'")
    name = str(record["task_id"])
    if name in answers:
        return name
    kind, _, number = name.partition("/")
    other = f"{_SAME_PROBLEMS.get(kind, kind)}/{number}"
    if other not in answers:
        raise ValueError(f"task_id '{name}' is not in this benchmark (or not among its first problems, with --limit)")
    return other


def _texts(record: Mapping[str, Any]) -> list[str]:
    key = next((key for key in _TEXT_FIELDS if key in record), None)
    if key is None:
        raise ValueError(f"expected one of the fields {', '.join(_TEXT_FIELDS)}")
    texts = record[key] if isinstance(record[key], list) else [record[key]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"'{key}' must be a string, or a list of strings")
    return texts
