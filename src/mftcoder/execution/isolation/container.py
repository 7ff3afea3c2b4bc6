"""Sandbox level `container`: a whole evaluation runs in Docker or Podman, and confines each program there once more.

This file writes the command line; the caller runs it. The image is built from the repository's docker/Dockerfile.
"""

import shutil
import subprocess
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


def why_unavailable() -> str | None:
    """Why this level does not work on this machine; None if it does."""
    engine = container_engine()
    if engine is None:
        return "neither podman nor docker found"
    try:
        found = subprocess.run([engine, "image", "inspect", IMAGE], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return f"{engine} does not answer"
    if found.returncode == 0:
        return None
    reason = (found.stderr.strip().splitlines() or [f"{engine}: exit code {found.returncode}"])[-1]
    return f"{reason}. Build the image in the repository: {BUILD}"


def run_command(
    engine: str, mounts: Sequence[Mount], arguments: Sequence[str], *, memory_mb: int, user: str, image: str = IMAGE
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
    return [engine, "run", "--rm", "--init", f"--user={user}", *limits, *scratch, *volumes, image, *arguments]
