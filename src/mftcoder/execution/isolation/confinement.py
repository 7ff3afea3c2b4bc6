"""What a zygote puts around every program it starts: the walls of one slot.

Goes in: a level and the slot's settings. Comes out: the settings that a fork needs (`clone_flags`), and `enter`, which a fresh
child calls before it runs anything foreign. `covers` says in words what really stands on this machine.
"""

import contextlib
import math
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.execution.isolation import kernel, landlock, namespaces, seccomp
from mftcoder.execution.isolation.cgroups import Cgroup
from mftcoder.execution.isolation.scratch import Scratch

_MEGABYTE = 1 << 20
_ZYGOTE_MB = 64  # the zygote's own share of its control group
_MAX_PROCESSES = 256  # of a slot's programs together, threads included
_MAX_TASKS_BESIDE = 2048  # of all programs and all else that the user starts, where programs run as the user


@dataclass
class Confinement:
    """The walls of one slot."""

    scratch: Scratch
    uid: int | None  # programs run as this user; None: as the caller
    clone_flags: int = 0
    rules: int | None = None  # Landlock rule set
    filters: bool = False  # system call filters
    group: Cgroup | None = None
    max_tasks: int | None = (
        None  # of the user, where the kernel counts all that the user has; None: those of the program
    )
    covers: list[str] = field(default_factory=list)
    _limits: list[tuple[int, int]] = field(default_factory=list)
    _ready_filters: dict[bool, bytes] = field(default_factory=dict)  # by whether the program may start processes

    @classmethod
    def prepare(cls, level: str, scratch: str, uid: int | None, readable: Sequence[str]) -> "Confinement":
        """Set up all that programs of the slot share; OSError if the level cannot be had here."""
        walls = cls(Scratch(scratch, uid), uid)
        walls.covers += ["time", "memory of a process", "file size", "environment"]
        if kernel.is_supported():
            walls.group = Cgroup.create(_MAX_PROCESSES)
            walls.covers += ["memory and number of all processes (control group)"] if walls.group else []
            walls.covers += ["new processes and foreign system calls (seccomp)"]
        if uid is None and not (level == "namespaces" and kernel.counts_tasks_by_namespace()):
            walls.max_tasks = _tasks_of_this_user() + _MAX_TASKS_BESIDE
        if level == "namespaces":
            walls._enter_namespaces(scratch, readable)
        elif kernel.is_supported():
            walls._wall_off_files(readable)
        if kernel.is_supported():
            walls._prepare_filters()
        if uid is not None:
            walls.covers.append("a user of its own")
        walls.scratch.clear()
        return walls

    def _enter_namespaces(self, root: str, readable: Sequence[str]) -> None:
        self.scratch = Scratch(namespaces.enter(root, readable), self.uid)
        self.clone_flags = kernel.CLONE_NEWPID
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # programs may have our user id: nothing of ours is theirs to read
        self.covers += namespaces.COVERS

    def _wall_off_files(self, readable: Sequence[str]) -> None:
        kernel.adopt_orphans()
        self.covers.append("network (seccomp)")
        if landlock.version():
            everywhere = [Path(path) for path in readable]
            self.rules = landlock.rule_set(everywhere, [Path(self.scratch.slot_folder), Path("/dev/null")])
            self.covers.append("files (Landlock)")
        if self.uid is None:
            self.covers.append("modes and times of files (seccomp)")

    def _prepare_filters(self) -> None:
        """Compilers may change modes: a linker makes its program executable."""
        self.filters = True
        for may_fork in (False, True):
            self._ready_filters[may_fork] = seccomp.program(
                may_fork=may_fork,
                own_files_only=self.uid is None and not may_fork,
                walled_signals=bool(self.clone_flags & kernel.CLONE_NEWPID),
            )

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
            resource.RLIMIT_NPROC: self.max_tasks or limits["processes"],
        }
        hard = {name: resource.getrlimit(name)[1] for name in wanted}
        self._limits = [(name, value if hard[name] < 0 else min(value, hard[name])) for name, value in wanted.items()]

    def enter(self, *, may_fork: bool = False) -> None:
        """Confine this process for good, and take it to its scratch folder. Called in the child, before foreign code."""
        os.chdir(self.scratch.path)
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
        else:
            kernel.drop_capabilities()
        kernel.die_with_parent()
        kernel.no_new_privileges()
        if self.rules is not None:
            landlock.restrict(self.rules)
        seccomp.install(seccomp.for_process(self._ready_filters[may_fork], os.getpid()))

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


def _tasks_of_this_user() -> int:
    """How many processes and threads the user has whose id this process has: what the kernel compares RLIMIT_NPROC with."""
    count, user = 0, os.getuid()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += len(list((folder / "task").iterdir())) if folder.stat().st_uid == user else 0
    return count
