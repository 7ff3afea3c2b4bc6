"""Landlock: what of the file system a program of the sandbox may see, where mounts of its own are not allowed.

Goes in: folders to read and folders to write. Comes out: a rule set that `restrict` puts on a process for good. Works as an
ordinary user and inside an ordinary container. Source: Documentation/userspace-api/landlock.rst of the kernel.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from mftcoder.execution.isolation import kernel

_CREATE_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FIRST_VERSION_RIGHTS = (1 << 13) - 1  # execute .. make_sym
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_NETWORK = 0b11  # bind and connect TCP
_SCOPES = 0b11  # abstract unix sockets, signals


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    try:
        return kernel.call("landlock_create_ruleset", None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def rule_set(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """A file descriptor of the rules: everything is refused but reading `readable`, listing any folder, all of `writable`.

    Folders may be listed because an import lists those it searches; contents may not be read.
    """
    level = version()
    handled = _FIRST_VERSION_RIGHTS | (_REFER if level >= 2 else 0) | (_TRUNCATE if level >= 3 else 0)
    handled |= _IOCTL_DEV if level >= 5 else 0
    network, scopes = (_NETWORK if level >= 4 else 0), (_SCOPES if level >= 6 else 0)
    size = 24 if level >= 6 else 16 if level >= 4 else 8
    attributes = ctypes.create_string_buffer(struct.pack("QQQ", handled, network, scopes)[:size], size)
    rules = kernel.call("landlock_create_ruleset", attributes, size, 0)
    _allow(rules, Path("/"), _READ_DIR)
    for path in readable:
        _allow(rules, path, _READ & handled)
    for path in writable:
        _allow(rules, path, handled & ~_IOCTL_DEV)
    return rules


def _allow(rules: int, path: Path, rights: int) -> None:
    if not path.exists():
        return
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = rights if path.is_dir() else rights & _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
        kernel.call("landlock_add_rule", rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def restrict(rules: int) -> None:
    """Put the rules on this process and all it will start; `no_new_privileges` must have been called."""
    kernel.call("landlock_restrict_self", rules, 0)
