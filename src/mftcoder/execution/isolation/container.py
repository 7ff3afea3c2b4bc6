"""Level `container`: the whole evaluation inside a container, which then confines each program in its turn.

Goes in: the files an evaluation reads and writes, and the command line that does it. Comes out: the command line that starts
Docker or Podman. Starts nothing itself. The image is built from the repository's docker/Dockerfile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE = "mftcoder-evaluate"
CACHE = "/opt/mftcoder/cache"  # MFTCODER_CACHE of the image
BUILD = f"docker build -t {IMAGE} -f docker/Dockerfile ."


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine, and where it stands in the container."""

    source: Path
    target: str
    writable: bool = False

    def argument(self) -> str:
        """For `--volume`."""
        return f"{self.source.resolve()}:{self.target}:{'rw' if self.writable else 'ro'}"


def run_command(
    engine: str, mounts: Sequence[Mount], arguments: Sequence[str], *, memory_mb: int, user: str, image: str = IMAGE
) -> list[str]:
    """No network, a read-only root, no capability, no gain of rights, bounded memory and processes."""
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
