"""How every program of a slot is confined: namespaces or Landlock, seccomp, rlimits, a control group, a user id."""

import contextlib
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mftcoder
from mftcoder.execution.isolation import kernel, landlock, namespaces, seccomp
from mftcoder.execution.isolation.cgroups import Cgroup
from mftcoder.execution.isolation.scratch import Scratch

_MEGABYTE = 1 << 20
_ZYGOTE_MB = 64  # memory of the zygote itself, which is in the control group too
_MAX_PROCESSES = 256  # of a slot's programs together, including threads
_MAX_TASKS_BESIDE = 2048  # of all programs and everything else that the user starts, where programs run as the user
_SYSTEM = "/usr /bin /sbin /lib /lib64 /etc/ld.so.cache /etc/alternatives /etc/localtime /etc/ssl/openssl.cnf"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass
class Confinement:
    """How the programs of one slot are confined. `covers` lists in words what really holds on this machine."""

    scratch: Scratch
    uid: int | None  # programs run as this user; None: as the caller
    clone_flags: int = 0  # namespaces of each program
    rules: int | None = None  # Landlock rule set
    filters: bool = False  # system call filters
    group: Cgroup | None = None
    max_tasks: int | None = (
        None  # RLIMIT_NPROC where the kernel counts all tasks of the user; None: the program's own limit
    )
    covers: list[str] = field(default_factory=list)
    _limits: list[tuple[int, int]] = field(default_factory=list)
    _ready_filters: dict[bool, bytes] = field(default_factory=dict)  # by whether the program may start processes

    @classmethod
    def prepare(cls, level: str, scratch: str, uid: int | None, readable: Sequence[str]) -> "Confinement":
        """Set up what all programs of the slot share; OSError if the level does not work here."""
        made = cls(Scratch(scratch, uid), uid)
        made.covers += ["time", "memory of a process", "file size", "environment"]
        if kernel.is_supported():
            made.group = Cgroup.create(_MAX_PROCESSES)
            made.covers += ["memory and number of all processes (control group)"] if made.group else []
            made.covers += ["new processes and foreign system calls (seccomp)"]
        if uid is None and not (level == "namespaces" and kernel.counts_tasks_by_namespace()):
            made.max_tasks = _tasks_of_this_user() + _MAX_TASKS_BESIDE
        if level == "namespaces":
            made._enter_namespaces(scratch, readable)
        elif kernel.is_supported():
            made._restrict_files(readable)
        if kernel.is_supported():
            made._prepare_filters()
        if uid is not None:
            made.covers.append("a user of its own")
        made.scratch.clear()
        return made

    def _enter_namespaces(self, root: str, readable: Sequence[str]) -> None:
        self.scratch = Scratch(namespaces.enter(root, readable), self.uid)
        self.clone_flags = kernel.CLONE_NEWPID
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # programs may have our user id, and must not read our memory
        self.covers += namespaces.COVERS

    def _restrict_files(self, readable: Sequence[str]) -> None:
        kernel.adopt_orphans()
        self.covers.append("network (seccomp)")
        if landlock.version():
            everywhere = [Path(path) for path in readable]
            self.rules = landlock.rule_set(everywhere, [Path(self.scratch.slot_folder), Path("/dev/null")])
            self.covers.append("files (Landlock)")
        if self.uid is None:
            self.covers.append("modes and times of files (seccomp)")

    def _prepare_filters(self) -> None:
        """One filter for programs, one for compilers: these may start processes and change modes (a linker sets the x bit)."""
        self.filters = True
        for may_fork in (False, True):
            self._ready_filters[may_fork] = seccomp.program(
                may_fork=may_fork,
                protect_modes=self.uid is None and not may_fork,
                own_signals_only=not self.clone_flags & kernel.CLONE_NEWPID,
            )

    def ready(self, limits: Mapping[str, Any]) -> None:
        """Prepare for a program with these limits. Called in the zygote, so that the child has less to do."""
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
        """Confine this process for good, inside its scratch folder. Called in the child before it runs untrusted code."""
        os.chdir(self.scratch.path)
        for name, value in self._limits:
            resource.setrlimit(name, (value, value))
        if self.group:
            # When memory runs out, the kernel kills this process before its zygote.
            descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(descriptor, b"1000")
            os.close(descriptor)
        os.setsid()  # otherwise the program shares our process group, and kill(0) would reach us
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
        """Kill what the last program left running: all children that this process inherited."""
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
        """True if the kernel killed the last program because it used too much memory."""
        return self.group is not None and self.group.new_kills() > 0


def _children() -> list[int]:
    thread = os.getpid()
    return [int(number) for number in Path(f"/proc/self/task/{thread}/children").read_text().split()]


def _tasks_of_this_user() -> int:
    """How many processes and threads this user has: the kernel compares that number with RLIMIT_NPROC."""
    count, user = 0, os.getuid()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += len(list((folder / "task").iterdir())) if folder.stat().st_uid == user else 0
    return count


def readable_paths(*toolchains: str) -> tuple[str, ...]:
    """What a program may read: system libraries, the interpreter, these toolchains. Links are resolved, no path contains another.

    The user's files are not among them, nor is this package's own folder: it holds the tests of the project's own benchmark.
    """
    own = Path(mftcoder.__file__).resolve().parent
    wanted = [*_SYSTEM.split(), *_DEVICES, sys.prefix, sys.base_prefix, *toolchains]
    existing = {Path(path).resolve() for path in wanted if Path(path).exists()}
    parts = {part for path in existing for part in _without(path, own)}
    return tuple(sorted(str(path) for path in parts if not any(parent in parts for parent in path.parents)))


def _without(folder: Path, excluded: Path) -> Iterator[Path]:
    """`folder`; if `excluded` lies in it, everything in it except that."""
    if not excluded.is_relative_to(folder):
        yield folder
    elif folder != excluded:
        for entry in folder.iterdir():
            yield from _without(entry, excluded)
