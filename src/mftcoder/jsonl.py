"""JSON and JSON Lines files: read as streams with `path:line: what` for every error, written atomically; journals and locks."""

import contextlib
import errno
import fcntl
import glob
import gzip
import json
import os
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson

from mftcoder.errors import DataError, MftError

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_UNREADABLE = (OSError, EOFError, zlib.error)  # the last two come from damaged .gz files


@contextmanager
def atomic_path(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block succeeds, and is removed if it fails. An OSError of the block names `path`.

    The file is flushed to disk before the rename, so a crash of the machine leaves either the old file or the new one. What killed
    processes left of the same `path` is removed. Neither is done for a file that is not `lasting`: who reads it knows its checksum, and
    its folder is removed in the end.
    """
    with names_in_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: is a device or a pipe, which a file must not replace. Give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _locked_beside(path, Path.touch) if lasting else (_beside(path), None)
    try:
        with names_in_errors(path, temporary):
            yield temporary
            if lasting:
                flush_to_disk(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        if descriptor is not None:
            _close(descriptor)


SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of a full disk, without an error number."""


@contextmanager
def names_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError of the block that names no file names `path`: `write` does not know what it writes to. `path` stands for `temporary` too."""
    try:
        yield
    except OSError as error:
        if error.errno is None and SHORT_WRITE.fullmatch(str(error)):
            raise OSError(errno.ENOSPC, "could not be written in full", str(path)) from error
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        elif temporary is not None and isinstance(error.filename, str | Path):
            error.filename = str(error.filename).replace(str(temporary), str(path), 1)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is flushed and renamed to it if the block succeeds, and removed if it fails.

    If another process has made `path` in the meantime, that folder stays. What killed processes left of the same `path` is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _locked_beside(path, Path.mkdir)
    try:
        with names_in_errors(path, temporary):
            yield temporary
            for file in temporary.rglob("*"):
                flush_to_disk(file)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _close(descriptor)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder for temporary files that is removed with the block. What killed processes left of the same name is removed first."""
    folder, descriptor = _locked_beside(Path(tempfile.gettempdir()) / name, partial(Path.mkdir, mode=0o700))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _locked_beside(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """A new file or folder beside `path`, and the descriptor that locks it while this process lives. Removes what others left of it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        _remove_if_left(left)
    while True:
        temporary = _beside(path)
        make(temporary)
        # Another process may take it for one that was left, until it is locked.
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open(temporary, os.O_RDONLY)
            if _is_locked_now(descriptor) and temporary.exists():
                return temporary, descriptor
            _close(descriptor)


def _is_locked_now(descriptor: int) -> bool:
    """Lock it. False if another process holds the lock; a file system without locks is no reason to fail."""
    try:
        lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _remove_if_left(path: Path) -> None:
    """Remove a temporary file or folder that no living process has locked."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            lock(descriptor)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def flush_to_disk(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, atomically. Floats keep their exact value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Write one record per line (gzipped if the name ends in .gz), atomically; returns their number."""
    count = 0
    with atomic_path(path) as temporary, open_for_writing(temporary, compressed=path.suffix == ".gz") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def append_line(path: Path, line: bytes) -> None:
    """Append `line` to a file, as a line of its own also where the last one has no line break: cut short, or written by hand."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")


def open_for_writing(path: Path, *, compressed: bool) -> IO[bytes]:
    """A binary file. A gzip file gets a fixed time stamp, so that equal content gives equal bytes."""
    return gzip.GzipFile(path, "wb", mtime=0) if compressed else path.open("wb")  # type: ignore[return-value]


def open_for_reading(path: Path) -> IO[bytes]:
    """A binary stream of the file's content, decompressed if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """`(line number from 1, line)` without blank lines, line ends (LF or CRLF) and a BOM."""
    try:
        with open_for_reading(path) as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                content = content.rstrip(b"\r\n")
                if content.strip():
                    yield number, content
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """`(line number, object)` for each line; DataError `path:line: what` at the first invalid line."""
    for number, line in read_lines(path):
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from error


def read_json(path: Path) -> Any:
    """One JSON document, decompressed if its name ends in .gz; DataError with the path if it is missing or invalid."""
    try:
        with open_for_reading(path) as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except RecursionError as error:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from error
    except (*_UNREADABLE, ValueError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for json.loads: DataError for an object with a doubled key, instead of keeping its last value."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise DataError(f"key '{key}' appears twice. Keep one of them.")
        seen.add(key)
    return dict(pairs)


def has_half_character(value: Any) -> bool:
    """Whether a text anywhere in decoded JSON cannot be written as UTF-8."""
    waiting = [value]
    while waiting:  # no recursion: whoever wrote the JSON chooses how deep it is
        one = waiting.pop()
        if isinstance(one, str) and _HALF_CHARACTER.search(one):
            return True
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return False


def first_bytes(path: Path, count: int) -> bytes:
    """The beginning of a file, decompressed if its name ends in .gz, without a BOM; DataError if it cannot be read."""
    try:
        with open_for_reading(path) as file:
            return file.read(count).removeprefix(b"\xef\xbb\xbf")
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def lock(file: int | IO[bytes], *, wait: bool = False) -> None:
    """Lock an open file for this process until it is closed or the process ends.

    If another process holds the lock: BlockingIOError, or with `wait` wait for it.
    """
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the empty file `path` inside the block, as in `lock`; creates the file. OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path, os.O_CREAT | os.O_RDWR)
    try:
        lock(descriptor, wait=wait)
        yield
    finally:
        _close(descriptor)


_held: set[int] = set()


def _open(path: Path, flags: int) -> int:
    """Open a file to be locked. A fork of this process closes its copy: a worker would hold the lock after this process was killed."""
    descriptor = os.open(path, flags, 0o644)
    _held.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor in _held:  # else this is a fork, which has closed it and must not unlock it
        _held.discard(descriptor)
        _unlock(descriptor)
        os.close(descriptor)


def _unlock(file: int | IO[bytes]) -> None:
    """Unlock before closing: a program that another thread is starting has a copy, with the lock, until it runs."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all)


class JournalFile:
    """An append-only file from which a stopped command goes on: a line of settings, then one JSON line per record.

    `records` are those that an earlier process wrote with the same settings; a line that a crash cut short does not count. The file
    is locked for this process. Problems are raised as `error`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], error: type[MftError]):
        self.path, self.settings, self._error = path, dict(settings), error
        self._file, self._owner = self._open(), os.getpid()
        self.records = read_journal(path, self.settings)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record; it is in the file when this returns."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._error(
                f"{self.path}: {error.strerror}. Finished records are kept; free some space and type the same command again"
            ) from error

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all records, atomically."""
        try:
            write_jsonl(self.path, [{"settings": self.settings}, *records])
        except OSError as error:
            raise self._error(f"{self.path}: cannot be written: {error.strerror}. Choose another --out") from error
        self.close()
        self._file = self._open()

    def close(self) -> None:
        """Unlock the file and close it; a fork of this process only closes its copy."""
        if not self._file.closed and self._owner == os.getpid():
            _unlock(self._file)
        self._file.close()

    def _open(self) -> IO[bytes]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
        except OSError as error:
            raise self._error(f"{self.path}: cannot be written: {error.strerror}. Choose another --out") from error
        try:
            lock(file)
            if not self._is_open(file):
                raise BlockingIOError
        except BlockingIOError as error:
            file.close()
            raise self._error(
                f"{self.path}: another process is writing into it. Wait for it, or choose another --out"
            ) from error
        return file

    def _is_open(self, file: IO[bytes]) -> bool:
        """False if another process has replaced the file at the path since this one was opened, so that each would lock its own."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False


def read_journal(path: Path, settings: Mapping[str, Any]) -> list[Any]:
    """The records of a journal that was written with these settings; [] for any other file."""
    lines = _complete_lines(path)
    return lines[1:] if lines[:1] == [{"settings": dict(settings)}] else []


def has_settings(path: Path, settings: Mapping[str, Any]) -> bool:
    """True if the file is a journal that was written with these settings."""
    with contextlib.suppress(DataError):  # a first line that is not complete
        return next((line for _, line in read_jsonl(path)), None) == {"settings": dict(settings)}
    return False


def _complete_lines(path: Path) -> list[Any]:
    lines: list[Any] = []
    with contextlib.suppress(DataError):  # an incomplete last line; the lines before it count
        lines.extend(line for _, line in read_jsonl(path))
    return lines
