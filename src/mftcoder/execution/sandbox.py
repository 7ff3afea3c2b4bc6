"""The types that travel between benchmarks, pool and workers: a program, its limits, the result of running it. All are JSON-able."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from mftcoder.errors import ExecutionError

Status = Literal["passed", "failed", "cheated", "compile_error", "timeout", "out_of_memory", "sandbox_error"]
STATUSES: tuple[Status, ...] = get_args(Status)

LEVELS = ("namespaces", "process")
"""Levels of a pool, the strongest first. Level `container` wraps a whole evaluation instead (isolation/container.py)."""


@dataclass(frozen=True)
class Program:
    """An answer and the tests that it must pass. `files` maps a role (`candidate`, `tests`, `entry_point`, ...) to its text.

    The role `preload` names trusted modules that a Python candidate finds imported.
    In languages other than Python, a program without tests is compiled and does not run. With the role `warnings`, the name of its file,
    its stdout is what the linter or the compiler says about the file as it stands. With tests and the role `record`, nothing is judged:
    stdout is a JSON list: what the candidate answered, each a hash or the name of an error, and whether the tests came to their end.
    """

    language: str
    files: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that runs. Equal programs share a verdict, so the hash must not allow collisions on purpose."""
        content = json.dumps([self.language, sorted(self.files.items())], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


_WALL = 3.0  # wall time per CPU time


@dataclass(frozen=True)
class Limits:
    """What one program may use. `seconds` is CPU time without compilation.

    Wall time may be three times that: an answer must not fail because the machine is busy, and one that sleeps must end.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    file_mb: int = 64
    processes: int = 128
    compile_seconds: float = 60.0  # CPU time of all compilers of a program together
    output_kb: int = 64  # how much of stdout and of stderr is kept

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ExecutionError(f"limits: {name}: must be a number above 0, not {value!r}")

    @property
    def wall_seconds(self) -> float:
        """Wall time of a run at most."""
        return _WALL * self.seconds

    @property
    def compile_wall_seconds(self) -> float:
        """Wall time of a compilation at most."""
        return _WALL * self.compile_seconds


@dataclass(frozen=True)
class ExecutionResult:
    """The verdict on a program and what it printed.

    `cheated`: the answer also passed a negative control. `sandbox_error`: our failure, never counted as the model's.
    """

    status: Status
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""  # for a Python candidate, the exception in one line
    seconds: float = 0.0  # wall time of the run, without compilation

    def __post_init__(self) -> None:
        for name in ("stdout", "stderr"):  # escape lone surrogates, which UTF-8 cannot encode
            object.__setattr__(self, name, getattr(self, name).encode(errors="backslashreplace").decode())

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ExecutionResult":
        return cls(**record)


def shortened(result: ExecutionResult) -> ExecutionResult:
    """The result with at most 2000 characters of each output."""
    return replace(result, stdout=result.stdout[:2000], stderr=result.stderr[:2000])
