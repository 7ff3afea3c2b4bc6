"""What this machine can do: sandbox levels and toolchains, for `mft doctor`, `mft benchmarks` and the start of an evaluation.

Goes in: nothing. Comes out: plain records, each with a reason where something is missing. Starts a worker for each level and
ends it again; builds no toolchain cache.
"""

import shutil
from dataclasses import dataclass

from mftcoder.errors import ExecutionError
from mftcoder.execution.languages import LANGUAGES
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import LEVELS


@dataclass(frozen=True)
class LevelState:
    """One sandbox level on this machine."""

    level: str
    available: bool
    covers: tuple[str, ...] = ()
    reason: str = ""  # why not


@dataclass(frozen=True)
class ToolchainState:
    """One language on this machine."""

    language: str
    title: str
    missing: tuple[str, ...]  # tools that are not on the PATH
    install: str


def levels() -> list[LevelState]:
    """All levels, the strongest first. `container` counts as there if an engine's command is."""
    engine = container_engine()
    container = LevelState("container", engine is not None, (), "" if engine else "neither podman nor docker found")
    return [container, *map(_level, LEVELS)]


def container_engine() -> str | None:
    """The command of a container engine, rootless podman before docker."""
    return next((path for name in ("podman", "docker") if (path := shutil.which(name))), None)


def toolchains() -> list[ToolchainState]:
    """All languages."""
    return [ToolchainState(row.name, row.title, tuple(row.missing()), row.install) for row in LANGUAGES.values()]


def _level(level: str) -> LevelState:
    try:
        with Pool(level, workers=1) as pool:
            return LevelState(level, True, pool.covers)
    except ExecutionError as error:
        return LevelState(level, False, (), str(error))
