"""A control group for a slot: the memory and the number of all its processes together, which limits of one process cannot bound.

Goes in: nothing; `Cgroup.create` puts the calling process into a new group. Comes out: the group, or None where control groups
cannot be written (an ordinary user, most containers). Versions 1 and 2. Files stay open, so the group works from inside a
world that cannot see them.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_PREFIX = "mft-"


@dataclass
class Cgroup:
    """The group of one slot."""

    folders: tuple[Path, ...]
    memory_limits: tuple[int, ...]  # descriptors of the files that take the limit, in the order to write them
    memory_events: int  # descriptor of the file that counts kills
    limit_mb: int = 0
    kills: int = 0

    @classmethod
    def create(cls, max_processes: int) -> "Cgroup | None":
        """A new group with this process in it."""
        _remove_stale()
        name = f"{_PREFIX}{os.getpid()}"
        for make in (_version_2, _version_1):
            with contextlib.suppress(OSError):
                return make(name, max_processes)
        return None

    def limit_memory(self, megabytes: int) -> None:
        """Bound the memory of all processes of the group together, files in memory included."""
        if megabytes == self.limit_mb:
            return
        # Raising goes the other way round than lowering: memory alone may never exceed memory and swap.
        order = self.memory_limits if megabytes < (self.limit_mb or 1 << 40) else self.memory_limits[::-1]
        for descriptor in order:
            os.pwrite(descriptor, str(megabytes << 20).encode(), 0)
        self.limit_mb = megabytes

    def new_kills(self) -> int:
        """How often the kernel has killed in this group since the last call."""
        text = os.pread(self.memory_events, 4096, 0).decode()
        found = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
        kills, before = int(found.group(1)) if found else 0, self.kills
        self.kills = kills
        return kills - before


def _own_folder(controller: str) -> Path:
    """The folder of this process's own group; of the whole mount where a namespace hides its path."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or (not controller and not names):
            folder = _MOUNT / controller / path.lstrip("/")
            return folder if folder.is_dir() else _MOUNT / controller
    raise FileNotFoundError(f"no control group for {controller or 'version 2'}")


def _join(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def _version_2(name: str, max_processes: int) -> Cgroup:
    parent = _own_folder("")
    if not (parent / "cgroup.controllers").exists() or "memory" not in (parent / "cgroup.controllers").read_text():
        raise FileNotFoundError("no memory controller of version 2")
    (parent / "cgroup.subtree_control").write_text("+memory +pids")
    folder = parent / name
    folder.mkdir(exist_ok=True)
    (folder / "pids.max").write_text(str(max_processes))
    with contextlib.suppress(OSError):
        (folder / "memory.swap.max").write_text("0")
    limit = _open(folder / "memory.max", os.O_WRONLY)
    _join(folder)
    return Cgroup((folder,), (limit,), _open(folder / "memory.events", os.O_RDONLY))


def _version_1(name: str, max_processes: int) -> Cgroup:
    folders = tuple(_own_folder(controller) / name for controller in ("memory", "pids"))
    for folder in folders:
        folder.mkdir(exist_ok=True)
    memory, pids = folders
    (pids / "pids.max").write_text(str(max_processes))
    limits = [_open(memory / "memory.limit_in_bytes", os.O_WRONLY)]
    with contextlib.suppress(OSError):
        limits.append(_open(memory / "memory.memsw.limit_in_bytes", os.O_WRONLY))
    for folder in folders:
        _join(folder)
    return Cgroup(folders, tuple(limits), _open(memory / "memory.oom_control", os.O_RDONLY))


def _remove_stale() -> None:
    """Remove groups that dead slots left. The group of a slot that lives stays: it is empty until its slot joins it."""
    for controller in ("", "memory", "pids"):
        with contextlib.suppress(OSError):
            for folder in _own_folder(controller).glob(f"{_PREFIX}*"):
                if _is_stale(folder.name.removeprefix(_PREFIX)):
                    remove(folder)


def _is_stale(process: str) -> bool:
    """True for the id of a process that has ended; this one's own id too, for it has made no group yet."""
    return process.isdecimal() and (int(process) == os.getpid() or not Path("/proc", process).exists())


def remove(folder: Path) -> None:
    """Remove an empty group; nothing happens to one that is in use."""
    with contextlib.suppress(OSError):
        folder.rmdir()
