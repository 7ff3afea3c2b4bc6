"""The cache folder, and keys for its entries that depend on the content of files.

A large file is read in full once: its hash is remembered as long as its size, times, inode and both ends stay the same.
"""

import contextlib
import hashlib
import inspect
import os
from pathlib import Path
from types import ModuleType

import xxhash

from mftcoder.errors import DataError
from mftcoder.jsonl import read_json, write_json

REMEMBERED_FROM = 1 << 24
"""Bytes from which a file's hash is remembered; a smaller file is hashed again each time."""
END = 1 << 16
"""Bytes at both ends of a file that are compared."""


def cache_root(configured: str | None = None) -> Path:
    """The cache folder: the configured one, else $MFTCODER_CACHE, else ~/.cache/mftcoder."""
    chosen = configured or os.environ.get("MFTCODER_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mftcoder"


def key(*parts: str | bytes | Path | ModuleType) -> str:
    """64 bits over these parts in order: texts, the content of files, and the source code of modules.

    A changed module gives a new key, so that a corrected conversion does not use its old results.
    """
    digest = xxhash.xxh3_64()
    for part in parts:
        content = _content(part)
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _content(part: str | bytes | Path | ModuleType) -> bytes:
    if isinstance(part, Path):
        return f"{part.name}:{content_hash(part)}".encode()
    if isinstance(part, ModuleType):
        return inspect.getsource(part).encode()
    return part.encode() if isinstance(part, str) else part


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. DataError if it cannot be read."""
    try:
        if path.stat().st_size < REMEMBERED_FROM:
            return _hash(path)
        state = _state(path)
        note = cache_root() / "hashes" / f"{xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())}.json"
        known = _read_note(note)
        if known.get("state") != state:
            known = {"path": str(path.resolve()), "state": state, "sha256": _hash(path)}
            with contextlib.suppress(OSError):  # a read-only cache: the file is hashed again next time
                write_json(note, known)
        return str(known["sha256"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> list[int | str]:
    """Values that change with the content. The ctime is enough, since programs cannot set it; the ends are a second check."""
    stat = path.stat()
    with path.open("rb") as file:
        head = file.read(END)
        file.seek(max(END, stat.st_size - END))
        ends = xxhash.xxh3_128_hexdigest(head + file.read())
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, ends]


def _read_note(note: Path) -> dict[str, object]:
    try:
        value = read_json(note)
    except DataError:
        return {}
    return value if isinstance(value, dict) else {}
