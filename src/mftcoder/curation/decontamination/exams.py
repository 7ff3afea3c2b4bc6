"""The problems that records are held against, and the options of the step `decontaminate`.

Problems of a benchmark come from the caller; those of a folder are read here, whatever fields they have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mftcoder.config.section import Paths, PathText, Section, Strings
from mftcoder.curation.example import Example
from mftcoder.data.records.files import lines_of
from mftcoder.data.records.formats import parse_object, read_record
from mftcoder.errors import DataError


class DecontaminateConfig(Section):
    """Options of the step `decontaminate`."""

    benchmarks: Strings = ()
    """Benchmarks or groups of `mft benchmarks`."""
    data_dir: PathText | None = None
    """Folder with the benchmarks' data; default: from the Hub."""
    files: Paths = ()
    """Files or folders of JSONL with problems of your own, in any fields."""
    rules: Literal["default", "published"] = "default"
    """default: shared n-grams or the same code under other names. published: function names or the core words of the description."""
    ngram: int = Field(default=10, ge=5, le=50)
    """Words of an n-gram of the default rules."""
    ignore: Strings = ()
    """N-grams that do not count: boilerplate that the data card shows."""
    core_word_share: float = Field(default=0.4, gt=0, lt=1)
    """Published rules: more than this share of a description's core words makes a hit."""

    @model_validator(mode="after")
    def _has_problems(self) -> "DecontaminateConfig":
        if not self.benchmarks and not self.files:
            raise ValueError("give `benchmarks` or `files`")
        return self


@dataclass(frozen=True)
class ExamProblem:
    """One problem: its texts, its solution as Python code (or empty), its function's name and its description (or empty)."""

    name: str  # exam and problem
    texts: tuple[str, ...]
    code: str = ""
    entry_point: str = ""
    description: str = ""


def problems_of_files(paths: tuple[str, ...], cache: Path) -> Iterator[ExamProblem]:
    """The problems in files and folders, a record each, named by `path:line`. DataError for a line that is not an object."""
    for origin, line in lines_of(paths, "exam", cache) if paths else ():
        try:
            yield problem_of_record(parse_object(line), line, origin)
        except DataError as error:
            raise DataError(*(f"{origin}: {problem}" for problem in error.problems)) from error


def problem_of_record(record: Mapping[str, Any], line: bytes, origin: str) -> ExamProblem:
    """A record of a known dialect, of HumanEval's fields, or with other texts, which are then compared one by one."""
    if isinstance(record.get("prompt"), str) and isinstance(record.get("canonical_solution"), str):
        code = record["prompt"] + record["canonical_solution"]
        return ExamProblem(origin, (code,), code, str(record.get("entry_point") or ""))
    try:
        example = Example(read_record(line, format="auto", task="exam", origin=origin))
    except DataError:
        texts = tuple(value for value in record.values() if isinstance(value, str))
        return ExamProblem(origin, texts, str(record.get("code") or ""))
    return ExamProblem(
        origin, (example.question, example.answer), "\n".join(example.python_codes), "", example.question
    )
