"""Namespaces of a slot: no network, its own processes, users and mounts, and a root that holds only what programs may read.

Built once per zygote. Each program gets one more process namespace: it sees no other program, and all its processes end with it.
Sources: namespaces(7), pivot_root(2), mount_setattr(2), user_namespaces(7).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mftcoder.execution.isolation import kernel

COVERS = (
    "network (none)",
    "files (a read-only root without the user's, a private scratch folder in memory)",
    "other processes (none visible)",
    "shared memory and sockets of others",
)
_NAMESPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWNET
_SCRATCH_OPTIONS = "size=512m,nr_inodes=16384,mode=0711"
_SCRATCHES = ("/scratch", "/mftcoder-scratch")
# Parts of /proc that change the kernel's settings or the machine. They are mounted read-only, as container engines do.
_PROC_SETTINGS = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")


def enter(root: str, readable: Sequence[str]) -> str:
    """Move this process into new namespaces with a root on the empty folder `root`; returns the slot's folder there.

    Only a new child process returns. The old process waits for it and ends with the same exit code. OSError where the kernel or the
    surrounding container refuses.
    """
    _unshare()
    child = os.fork()
    if child:
        _pid, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for path in (*readable, *_DEVICES):
        _show(root, Path(path))
    _link_top_folders(root)
    # No readable path may lie in it: a program that owns a folder could replace what is in it, an interpreter say.
    scratch = next((name for name in _SCRATCHES if not _holds_any(name, readable)), _SCRATCHES[-1])
    _private_mounts(root, scratch, None if _holds_any("/tmp", readable) else "/tmp")
    _change_root(root)
    kernel.libc_call("sethostname", b"sandbox", 7)
    return scratch


def _holds_any(folder: str, paths: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for path in paths)


def _unshare() -> None:
    """Enter new namespaces. An ordinary user also needs a user namespace, which maps only this user's id."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        kernel.libc_call("unshare", _NAMESPACES)
        return
    kernel.libc_call("unshare", _NAMESPACES | kernel.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _show(root: str, path: Path) -> None:
    """Mount `path` under `root`, read-only."""
    if not path.exists():
        return
    target = Path(root + str(path))
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    target.mkdir(exist_ok=True) if path.is_dir() else target.touch()
    kernel.mount(str(path), str(target), flags=kernel.MS_BIND | kernel.MS_REC)
    if not str(path).startswith("/dev/"):  # a device on a mount without devices could not be opened
        kernel.make_read_only(str(target))


def _link_top_folders(root: str) -> None:
    """Copy the links `/bin`, `/lib` and so on, which point into /usr on most systems."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        link = Path("/", name)
        if link.is_symlink() and not Path(root, name).exists():
            Path(root, name).symlink_to(link.readlink())


def _private_mounts(root: str, scratch: str, temporary: str | None) -> None:
    """Mount the scratch folder (in memory) and /proc; make `temporary` a link to where programs may write."""
    for name in (scratch, "/proc"):
        Path(root + name).mkdir(exist_ok=True)
    if temporary:
        Path(root + temporary).symlink_to(f"{scratch}/run")
    kernel.mount("tmpfs", f"{root}{scratch}", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _SCRATCH_OPTIONS)
    # 4 hides every process that the program may not trace. 2 would show the zygote to programs of group 0.
    kernel.mount("proc", f"{root}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV, "hidepid=4")
    for name in _PROC_SETTINGS:
        path = f"{root}/proc/{name}"
        if Path(path).exists():
            kernel.mount(path, path, flags=kernel.MS_BIND | kernel.MS_REC)
            kernel.make_read_only(path)


def _change_root(root: str) -> None:
    os.chdir(root)
    kernel.call("pivot_root", b".", b".")
    kernel.libc_call("umount2", b".", kernel.MNT_DETACH)
    os.chdir("/")
    kernel.mount("none", "/", flags=kernel.MS_RDONLY | 32)  # MS_REMOUNT: make the root itself read-only
    sys.path_importer_cache.clear()
