"""The folders of this machine that a program of the sandbox may read: the system's libraries, the interpreter, toolchains.

Goes in: nothing. Comes out: paths. Never the user's files, and never this package's own folder: the tests of its own benchmark
lie there.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import mftcoder

_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def readable_paths(*toolchains: str) -> tuple[str, ...]:
    """Existing paths, links resolved, none inside another."""
    own = Path(mftcoder.__file__).resolve().parent
    wanted = [*_SYSTEM, *_DEVICES, sys.prefix, sys.base_prefix, *toolchains]
    existing = {Path(path).resolve() for path in wanted if Path(path).exists()}
    parts = {part for path in existing for part in _without(path, own)}
    return tuple(sorted(str(path) for path in parts if not any(parent in parts for parent in path.parents)))


def _without(folder: Path, excluded: Path) -> Iterator[Path]:
    """`folder`, or, if `excluded` lies in it, all its parts but that one."""
    if not excluded.is_relative_to(folder):
        yield folder
    elif folder != excluded:
        for entry in folder.iterdir():
            yield from _without(entry, excluded)
