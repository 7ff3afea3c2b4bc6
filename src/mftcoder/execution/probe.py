"""Which sandbox levels and toolchains this machine has, and why one is missing. Starts a worker per level; builds no toolchain."""

from dataclasses import dataclass

from mftcoder.errors import ExecutionError
from mftcoder.execution.isolation.container import why_unavailable
from mftcoder.execution.languages import LANGUAGES
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import LEVELS


@dataclass(frozen=True)
class LevelState:
    """One sandbox level on this machine."""

    level: str
    available: bool
    covers: tuple[str, ...] = ()
    reason: str = ""  # why it is not available


@dataclass(frozen=True)
class ToolchainState:
    """One language on this machine."""

    language: str
    title: str
    missing: tuple[str, ...]  # tools that are not on the PATH
    install: str


def levels() -> list[LevelState]:
    """All levels, the strongest first."""
    problem = why_unavailable()
    return [LevelState("container", problem is None, (), problem or ""), *map(_level, LEVELS)]


def toolchains() -> list[ToolchainState]:
    """All languages."""
    return [ToolchainState(row.name, row.title, tuple(row.missing()), row.install) for row in LANGUAGES.values()]


def _level(level: str) -> LevelState:
    try:
        with Pool(level, workers=1) as pool:
            return LevelState(level, True, pool.covers)
    except ExecutionError as error:
        return LevelState(level, False, (), str(error))
