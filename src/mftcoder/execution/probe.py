"""What this machine can do: sandbox levels and toolchains, for `mft doctor`, `mft benchmarks` and the start of an evaluation.

Goes in: nothing. Comes out: plain records, each with a reason where something is missing. Starts a worker for each level and
ends it again; builds no toolchain cache.
"""

import shutil
import subprocess
from dataclasses import dataclass

from mftcoder.errors import ExecutionError
from mftcoder.execution.isolation.container import BUILD, IMAGE
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
    """All levels, the strongest first."""
    return [_container(), *map(_level, LEVELS)]


def container_engine() -> str | None:
    """The command of a container engine, rootless podman before docker."""
    return next((path for name in ("podman", "docker") if (path := shutil.which(name))), None)


def _container() -> LevelState:
    engine = container_engine()
    if engine is None:
        return LevelState("container", False, (), "neither podman nor docker found")
    try:
        found = subprocess.run([engine, "image", "inspect", IMAGE], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return LevelState("container", False, (), f"{engine} does not answer")
    if found.returncode == 0:
        return LevelState("container", True)
    reason = (found.stderr.strip().splitlines() or [f"{engine}: exit code {found.returncode}"])[-1]
    return LevelState("container", False, (), f"{reason}. Build the image in the repository: {BUILD}")


def toolchains() -> list[ToolchainState]:
    """All languages."""
    return [ToolchainState(row.name, row.title, tuple(row.missing()), row.install) for row in LANGUAGES.values()]


def _level(level: str) -> LevelState:
    try:
        with Pool(level, workers=1) as pool:
            return LevelState(level, True, pool.covers)
    except ExecutionError as error:
        return LevelState(level, False, (), str(error))
