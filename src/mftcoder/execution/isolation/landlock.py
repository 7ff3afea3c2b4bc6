"""Landlock: which files a program may read and write, where mount namespaces are not allowed.

Works for an ordinary user and inside an ordinary container. Source: Documentation/userspace-api/landlock.rst of the kernel.
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
    """A descriptor of rules that allow reading `readable`, everything in `writable`, and listing any folder.

    Listing is allowed because an import lists the folders that it searches; the files in them cannot be read.
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
    """Apply the rules to this process and all its future children. Call `no_new_privileges` first."""
    kernel.call("landlock_restrict_self", rules, 0)
