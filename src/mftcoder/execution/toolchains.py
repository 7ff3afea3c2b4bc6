"""The compilers and runtimes of this machine: which there are, what each needs, and what is built once for all programs.

Goes in: a language's name. Comes out: a `Toolchain` with absolute paths and a warm cache, or an ExecutionError that says what to
install. The cache lies in the user's cache folder, keyed by the tools' versions, and is shown to programs read-only.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mftcoder.cache import cache_root
from mftcoder.errors import ExecutionError

_BUILD_SECONDS = 900


@dataclass(frozen=True)
class Toolchain:
    """What a language's programs are built with. `readable` are folders its compilers and runtimes read."""

    language: str
    tools: Mapping[str, str]
    cache: str = ""
    readable: tuple[str, ...] = ()
    version: str = ""


def find(tools: tuple[str, ...], install: str, language: str) -> dict[str, str]:
    """Absolute paths of the tools; ExecutionError with how to get the missing ones."""
    found = {tool: shutil.which(tool) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        raise ExecutionError(f"{language}: {', '.join(missing)} not found on this machine. {install}")
    return {tool: str(path) for tool, path in found.items()}


def fast_linker() -> tuple[str, ...]:
    """The compiler driver's flag for mold or else gold, if installed: linking is then a matter of milliseconds."""
    found = (name for name in ("mold", "gold") if shutil.which(name if name == "mold" else f"ld.{name}"))
    return tuple(f"-fuse-ld={name}" for name in found)[:1]


def output_of(*command: str, environment: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    """What a trusted command prints; ExecutionError with its last line if it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExecutionError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ExecutionError(f"{' '.join(command)[:120]}: exit code {done.returncode}: {''.join(last)}")
    return done.stdout


def cached(name: str, contents: str, build: Callable[[Path], None]) -> str:
    """A folder that `build` has filled, made once for these `contents` (sources, versions, flags)."""
    root = cache_root() / "toolchains"
    folder = root / f"{name}-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"
    done = folder / ".done"  # a build names its own absolute path, so it cannot be moved into place
    if done.exists():
        return str(folder)
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            done.touch()
    return str(folder)
