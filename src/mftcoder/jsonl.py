"""JSON and JSON Lines files: read as streams with `path:line: what` for every error, and written atomically."""

import gzip
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from mftcoder.errors import DataError

_UNREADABLE = (OSError, EOFError, zlib.error)  # the last two come from damaged .gz files


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block succeeds, and is removed if it fails.

    The file is flushed to disk before the rename, so a crash leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is flushed and renamed to it if the block succeeds, and removed if it fails.

    If another process has made `path` in the meantime, that folder stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush_to_disk(file)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
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


def first_bytes(path: Path, count: int) -> bytes:
    """The beginning of a file, decompressed if its name ends in .gz, without a BOM; DataError if it cannot be read."""
    try:
        with open_for_reading(path) as file:
            return file.read(count).removeprefix(b"\xef\xbb\xbf")
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
