"""Sandbox level `container`: a whole evaluation runs in Docker or Podman, and confines each program there once more.

This file writes the command line; the caller runs it. The image is built from the repository's docker/Dockerfile.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE = "mftcoder-evaluate"
CACHE = "/opt/mftcoder/cache"  # MFTCODER_CACHE of the image
BUILD = f"docker build -t {IMAGE} -f docker/Dockerfile ."


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine, and its path in the container."""

    source: Path
    target: str
    writable: bool = False

    def argument(self) -> str:
        """The value of `--volume`."""
        return f"{self.source.resolve()}:{self.target}:{'rw' if self.writable else 'ro'}"


def container_engine() -> str | None:
    """The command of a container engine, rootless podman before docker; None if there is none."""
    return next((path for name in ("podman", "docker") if (path := shutil.which(name))), None)


def run_command(
    engine: str, mounts: Sequence[Mount], arguments: Sequence[str], *, memory_mb: int, user: str
) -> list[str]:
    """The command: no network, a read-only root, no capabilities, no new privileges, bounded memory and processes."""
    limits = [
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--pids-limit=2048",
    ]
    scratch = ["--tmpfs=/tmp:rw,exec,nosuid,nodev,size=4g", f"--memory={memory_mb}m", f"--memory-swap={memory_mb}m"]
    volumes = [f"--volume={mount.argument()}" for mount in mounts]
    return [engine, "run", "--rm", "--init", f"--user={user}", *limits, *scratch, *volumes, IMAGE, *arguments]
