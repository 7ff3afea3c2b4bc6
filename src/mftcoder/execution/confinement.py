"""What a zygote puts around every program it starts: the walls of one slot.

Goes in: a level and the slot's settings. Comes out: the settings that a fork needs (`clone_flags`), and `enter`, which a fresh
child calls before it runs anything foreign. `covers` says in words what really stands on this machine.
"""

import math
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.execution import kernel, landlock, namespaces, seccomp
from mftcoder.execution.cgroups import Cgroup

_MEGABYTE = 1 << 20
_ZYGOTE_MB = 64  # the zygote's own share of its control group
_MAX_PROCESSES = 256  # of a slot's programs together, threads included


@dataclass
class Confinement:
    """The walls of one slot."""

    scratch: str
    uid: int | None  # programs run as this user; None: as the caller
    clone_flags: int = 0
    rules: int | None = None  # Landlock rule set
    filters: bool = False  # system call filters
    group: Cgroup | None = None
    covers: list[str] = field(default_factory=list)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    _limits: list[tuple[int, int]] = field(default_factory=list)
    _ready_filters: dict[tuple[bool, bool], bytes] = field(default_factory=dict)

    @classmethod
    def prepare(cls, level: str, scratch: str, uid: int | None, readable: Sequence[str]) -> "Confinement":
        """Set up all that programs of the slot share; OSError if the level cannot be had here."""
        walls = cls(scratch, uid)
        walls.covers += ["time", "memory of a process", "file size", "environment"]
        if kernel.is_supported():
            walls.group = Cgroup.create(_MAX_PROCESSES)
            walls.filters = True
            walls._ready_filters = {
                (command, may_fork): seccomp.program(
                    may_fork=may_fork, may_signal=seccomp.EVERYONE if command else seccomp.NOBODY
                )
                for command, may_fork in ((False, False), (True, False), (True, True))
            }
            walls.covers += ["memory and number of all processes (control group)"] if walls.group else []
            walls.covers += ["new processes and foreign system calls (seccomp)"]
        if level == "namespaces":
            walls._enter_namespaces(readable)
        elif kernel.is_supported():
            walls._wall_off_files(readable)
        if uid is not None:
            os.chown(walls.scratch, uid, uid)
            walls.covers.append("a user of its own")
        return walls

    def _enter_namespaces(self, readable: Sequence[str]) -> None:
        self.scratch, self.clone_flags = namespaces.enter(self.scratch, readable), kernel.CLONE_NEWPID
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # programs may have our user id: nothing of ours is theirs to read
        self.covers += namespaces.COVERS

    def _wall_off_files(self, readable: Sequence[str]) -> None:
        kernel.adopt_orphans()
        self.covers.append("network (seccomp)")
        if landlock.version():
            everywhere = [Path(path) for path in readable]
            self.rules = landlock.rule_set(everywhere, [Path(self.scratch), Path("/dev/null")])
            self.covers.append("files (Landlock)")

    def ready(self, limits: Mapping[str, Any]) -> None:
        """Prepare for a program with these limits. Called in the zygote: each step spared in the child is spared for every program."""
        if self.group:
            self.group.limit_memory(limits["memory_mb"] + _ZYGOTE_MB)
        wanted = {
            resource.RLIMIT_CPU: math.ceil(limits["seconds"]),
            resource.RLIMIT_DATA: limits["memory_mb"] * _MEGABYTE,
            resource.RLIMIT_AS: limits["address_mb"] * _MEGABYTE,
            resource.RLIMIT_FSIZE: limits["file_mb"] * _MEGABYTE,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: 512,
        }
        if self.uid is not None:
            wanted[resource.RLIMIT_NPROC] = limits["processes"]
        hard = {name: resource.getrlimit(name)[1] for name in wanted}
        self._limits = [(name, value if hard[name] < 0 else min(value, hard[name])) for name, value in wanted.items()]

    def enter(self, *, command: bool, may_fork: bool = False) -> None:
        """Confine this process for good. Called in the child, before foreign code: a command that is executed, or a Python fork."""
        for name, value in self._limits:
            resource.setrlimit(name, (value, value))
        if self.group:
            _kill_me_first()
        os.setsid()  # its process group would else be ours: kill(0) would reach us
        if not self.filters:
            return
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        elif self.is_root:
            kernel.drop_capabilities()
        kernel.die_with_parent()
        kernel.no_new_privileges()
        if self.rules is not None:
            landlock.restrict(self.rules)
        seccomp.install(self._filter(command, may_fork))

    def _filter(self, command: bool, may_fork: bool) -> bytes:
        """Runtimes signal their own threads; a Python fork has no use for signals, so its filter is the same for all."""
        if command and not self.clone_flags & kernel.CLONE_NEWPID:
            return seccomp.program(may_fork=may_fork, may_signal=os.getpid())
        return self._ready_filters[command, may_fork]

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Empty the scratch folder, but for the names in `keep`."""
        with os.scandir(self.scratch) as entries:
            for entry in list(entries):
                if entry.name not in keep:
                    _remove(entry)

    def hand_over(self) -> None:
        """Give the scratch folder's files to the user that programs run as."""
        if self.uid is None:
            return
        for folder, _, files in os.walk(self.scratch):
            for path in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118
                os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def kill_leftovers(self) -> None:
        """End what the last program started and left behind: all children this process has inherited."""
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            for child in _children():
                os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)

    def memory_killed(self) -> bool:
        """True if the kernel killed the last program for its memory."""
        return self.group is not None and self.group.new_kills() > 0


def _kill_me_first() -> None:
    """Out of memory, the kernel kills the program before its zygote."""
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(descriptor, b"1000")
    os.close(descriptor)


def _children() -> list[int]:
    thread = os.getpid()
    return [int(number) for number in Path(f"/proc/self/task/{thread}/children").read_text().split()]


def _remove(entry: os.DirEntry[str]) -> None:
    """Remove a file or a folder, whatever rights it was left with; never through a link."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)  # noqa: PTH108
        return
    os.chmod(entry.path, 0o700)  # noqa: PTH101
    with os.scandir(entry.path) as entries:
        for inner in list(entries):
            _remove(inner)
    os.rmdir(entry.path)  # noqa: PTH106
