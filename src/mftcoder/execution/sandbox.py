"""What a program is, what running it can lead to, and the levels of isolation it can run at.

Goes in: nothing but plain data. Comes out: the types that travel between benchmarks, pool and workers, all JSON-able. Runs
nothing itself: pool.py runs many programs, worker.py one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Status = Literal["passed", "failed", "cheated", "compile_error", "timeout", "out_of_memory", "sandbox_error"]
STATUSES: tuple[Status, ...] = get_args(Status)

LEVELS = ("namespaces", "process")
"""Levels a pool can run at, the strongest first. `container` wraps a whole evaluation instead (app/scoring/evaluate.py)."""


@dataclass(frozen=True)
class Program:
    """An answer and the tests it must pass. `files` maps a role to source text; languages.py says which roles a language has."""

    language: str
    files: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is run. Equal programs share a verdict, so no answer may be made to collide with another."""
        content = json.dumps([self.language, sorted(self.files.items())], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


_WALL = 3.0


@dataclass(frozen=True)
class Limits:
    """What one program may use. Sizes are megabytes; `seconds` are of the processor, after compilation.

    Wall time may be three times that: a busy machine must not fail an answer, and one that sleeps must end.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    file_mb: int = 64
    processes: int = 128
    compile_seconds: float = 60.0  # of the processor, for all compilers of a program together
    output_kb: int = 64  # of stdout and of stderr, kept; what comes after is thrown away

    @property
    def wall_seconds(self) -> float:
        """The longest a run may take."""
        return _WALL * self.seconds

    @property
    def compile_wall_seconds(self) -> float:
        """The longest a compilation may take."""
        return _WALL * self.compile_seconds


@dataclass(frozen=True)
class ExecutionResult:
    """How a run ended. `cheated` passed tests, and passed wrong ones too. `sandbox_error` is ours, and is never counted as the model's failure."""

    status: Status
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""  # of a Python candidate: the exception's one line
    seconds: float = 0.0  # wall time of the run, without compilation

    def __post_init__(self) -> None:
        for name in ("stdout", "stderr"):  # lone surrogates, which no file can hold, become escapes
            object.__setattr__(self, name, getattr(self, name).encode(errors="backslashreplace").decode())

    def as_record(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ExecutionResult":
        """The inverse of `as_record`."""
        return cls(**record)


def shortened(result: ExecutionResult, limit: int = 2000) -> ExecutionResult:
    """The result with at most `limit` characters of each output."""
    return replace(result, stdout=result.stdout[:limit], stderr=result.stderr[:limit])
