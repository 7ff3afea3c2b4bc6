"""A control group for a slot: it bounds the memory and the number of all its processes together, which rlimits cannot.

Versions 1 and 2. The group's files stay open, so that it can be used from inside namespaces that do not show them.
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
    """The control group of one slot."""

    folders: tuple[Path, ...]
    memory_limits: tuple[int, ...]  # descriptors of the files that hold the limit, in the order for lowering it
    memory_events: int  # descriptor of the file that counts kills
    limit_mb: int = 0
    kills: int = 0

    @classmethod
    def create(cls, max_processes: int) -> "Cgroup | None":
        """A new group with this process in it; None where groups cannot be made (an ordinary user, most containers)."""
        _remove_stale()
        name = f"{_PREFIX}{os.getpid()}"
        for make in (_version_2, _version_1):
            with contextlib.suppress(OSError):
                return make(name, max_processes)
        return None

    def limit_memory(self, megabytes: int) -> None:
        """Bound the memory of all processes of the group together, including files on tmpfs."""
        if megabytes == self.limit_mb:
            return
        # Raise in the opposite order: the limit of memory may never exceed that of memory plus swap.
        order = self.memory_limits if megabytes < (self.limit_mb or 1 << 40) else self.memory_limits[::-1]
        for descriptor in order:
            os.pwrite(descriptor, str(megabytes << 20).encode(), 0)
        self.limit_mb = megabytes

    def new_kills(self) -> int:
        """How many processes of this group the kernel killed for their memory since the last call."""
        text = os.pread(self.memory_events, 4096, 0).decode()
        found = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
        kills, before = int(found.group(1)) if found else 0, self.kills
        self.kills = kills
        return kills - before


def _own_folder(controller: str) -> Path:
    """The folder of this process's own group; the mount itself where a namespace hides the group's path."""
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
    """Remove groups that dead slots left. Keep a living slot's group, which is empty until the slot joins it."""
    for controller in ("", "memory", "pids"):
        with contextlib.suppress(OSError):
            for folder in _own_folder(controller).glob(f"{_PREFIX}*"):
                if _is_stale(folder.name.removeprefix(_PREFIX)):
                    remove(folder)


def _is_stale(process: str) -> bool:
    """True for the id of a process that has ended, and for this process's own id: it has not made its group yet."""
    return process.isdecimal() and (int(process) == os.getpid() or not Path("/proc", process).exists())


def remove(folder: Path) -> None:
    """Remove a group if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
