"""The compilers and runtimes of this machine, and what is built from them once for all programs.

What is built lies in the user's cache folder under the hash of its sources, flags and tool versions. Programs see it read-only.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.isolation.scratch import lock

_BUILD_SECONDS = 900


@dataclass(frozen=True)
class Toolchain:
    """What builds and runs a language's programs. `readable`: folders that its compilers and runtimes read."""

    language: str
    tools: Mapping[str, str]
    cache: str = ""
    readable: tuple[str, ...] = ()
    version: str = ""


def find(tools: tuple[str, ...], install: str, language: str) -> dict[str, str]:
    """Absolute paths of the tools; ExecutionError with how to install the missing ones."""
    found = {tool: shutil.which(tool) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        raise ExecutionError(f"{language}: {', '.join(missing)} not found on this machine. {install}")
    return {tool: str(path) for tool, path in found.items()}


def fast_linker() -> tuple[str, ...]:
    """The compiler's flag for mold, or else gold, if installed: they link in milliseconds."""
    found = (name for name in ("mold", "gold") if shutil.which(name if name == "mold" else f"ld.{name}"))
    return tuple(f"-fuse-ld={name}" for name in found)[:1]


def output_of(*command: str, environment: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    """The stdout of a trusted command; ExecutionError with the last line of its stderr if it fails."""
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
    """The folder that `build` filled for these `contents` (sources, versions, flags); built if there is none yet."""
    root = cache_folder().resolve()  # builds contain their path: one, whichever link leads to it
    folder = root / f"{name}-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"
    done = folder / ".done"  # builds contain their absolute path, so they cannot be moved into place
    if done.exists():
        return str(folder)
    root.mkdir(parents=True, exist_ok=True)
    lock_file = root / f"{folder.name}.lock"
    lock_file.touch()
    held = lock(lock_file, wait=True)
    try:
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            done.touch()
    finally:
        os.close(held)
    return str(folder)


def cache_folder() -> Path:
    """Where toolchains are kept: $MFTCODER_CACHE/toolchains, else ~/.cache/mftcoder/toolchains."""
    chosen = os.environ.get("MFTCODER_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mftcoder") / "toolchains"
