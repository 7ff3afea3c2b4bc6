"""The Linux system calls that Python does not offer: clone, prctl, mounts, Landlock, capabilities.

They raise OSError with the call's name. Policy is left to confinement.py. Numbers are from the kernel's uapi headers.
"""

import ctypes
import os
import platform
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID = 0, 6, 7

_CALLS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"clone": 56, "capset": 126, "pivot_root": 155, "landlock_create_ruleset": 444, "landlock_add_rule": 445},
    "aarch64": {"clone": 220, "capset": 91, "pivot_root": 41, "landlock_create_ruleset": 444, "landlock_add_rule": 445},
}
_SHARED_CALLS = {"landlock_restrict_self": 446, "mount_setattr": 442}
_NUMBERS = {name: ctypes.c_long(n) for name, n in {**_CALLS.get(platform.machine(), {}), **_SHARED_CALLS}.items()}


class UnsupportedMachineError(OSError):
    """This file has no system call numbers for this operating system or processor; only rlimits work there."""


def is_supported() -> bool:
    """True on Linux with a known processor."""
    return sys.platform == "linux" and platform.machine() in _CALLS


# PyDLL keeps the GIL: a child made by clone must not wait for a thread that it does not have.
_LIBC = ctypes.PyDLL(None, use_errno=True) if sys.platform == "linux" else None


def call(name: str, *arguments: int | bytes | ctypes.Array | ctypes.Structure | None) -> int:
    """The system call `name`; OSError if it fails, UnsupportedMachineError where its number is unknown."""
    if _LIBC is None or name not in _NUMBERS:
        raise UnsupportedMachineError(f"{name}: not on {sys.platform} {platform.machine()}")
    return _checked(name, _LIBC.syscall(_NUMBERS[name], *map(_as_argument, arguments)))


def _as_argument(value: int | bytes | ctypes.Array | ctypes.Structure | None) -> object:
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.byref(value) if isinstance(value, (ctypes.Array, ctypes.Structure)) else value


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def libc_call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library that returns -1 and sets errno when it fails."""
    if _LIBC is None:
        raise UnsupportedMachineError(f"{name}: not on {sys.platform}")
    return _checked(name, getattr(_LIBC, name)(*map(_as_argument, arguments)))


def fork_into(flags: int) -> int:
    """`os.fork()` into new namespaces: the child's id, and 0 in the child. With `CLONE_NEWPID` the child is process 1 of its own."""
    if not flags:
        return os.fork()
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        child = call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    except OSError:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return child


if _LIBC is not None:
    _LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """`prctl(option, first, second, 0, 0)`."""
    if _LIBC is None:
        raise UnsupportedMachineError(f"prctl: not on {sys.platform}")
    _checked("prctl", _LIBC.prctl(option, first, second, 0, 0))


def no_new_privileges() -> None:
    """From now on no program that this process starts can gain privileges (setuid bits, file capabilities)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends this process a signal when the thread that started it ends."""
    prctl(PR_SET_PDEATHSIG, by)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ended, so that it can kill them."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    libc_call("mount", source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)


def make_read_only(target: str) -> None:
    """Make the mount at `target` and all below it read-only, without setuid and devices."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_ns")]

    wanted = Attributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    call("mount_setattr", AT_FDCWD, target.encode(), AT_RECURSIVE, wanted, ctypes.sizeof(wanted))


def may_switch_users() -> bool:
    """True if this process may become another user and give files to it. A container may lack the capabilities or the users."""
    status = Path("/proc/self/status")
    if not status.exists() or not _has_many_users():
        return False
    effective = int(re.findall(r"^CapEff:\s*(\w+)", status.read_text(), re.MULTILINE)[0], 16)
    return all(effective >> number & 1 for number in (_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID))


def counts_tasks_by_namespace() -> bool:
    """True if RLIMIT_NPROC counts only the tasks of the caller's user namespace: Linux 5.14 and later."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return version is not None and tuple(map(int, version.groups())) >= (5, 14)


def _has_many_users() -> bool:
    """False in a user namespace that maps only a few ids."""
    rows = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) < 20_000 and int(first) + int(count) >= 65_536 for first, _, count in rows)


def drop_capabilities() -> None:
    """Give up every capability of this process; user 0 is then an ordinary user."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)
