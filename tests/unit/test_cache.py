"""Keys of the cache depend on the content, and a large file is read in full only once."""

import hashlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mftcoder import cache
from mftcoder.errors import DataError

LARGE = cache.REMEMBERED_FROM + 5


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list of files that are read in full."""
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, algorithm: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def write_large(path: Path, middle: bytes = b"one") -> Path:
    """A large file that differs from others only in the middle, far from both ends, with the same mtime."""
    before = path.stat().st_ctime_ns if path.exists() else 0
    while True:  # until the file system's clock has moved on
        with path.open("wb") as file:
            file.truncate(LARGE)
            file.seek(LARGE // 2)
            file.write(middle)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        if path.stat().st_ctime_ns != before:
            return path


def test_a_large_file_is_read_in_full_once(tmp_path: Path, readings: list[str]) -> None:
    path = write_large(tmp_path / "weights")
    first = cache.content_hash(path)
    assert cache.content_hash(path) == first == hashlib.sha256(path.read_bytes()).hexdigest()
    assert readings == ["weights"]


def test_a_large_file_changed_in_the_middle_has_another_hash_though_size_and_mtime_stay(tmp_path: Path) -> None:
    path = write_large(tmp_path / "weights")
    first = cache.content_hash(path)
    write_large(path, b"two")
    assert cache.content_hash(path) != first


def test_another_file_in_its_place_has_its_own_hash(tmp_path: Path) -> None:
    path, other = write_large(tmp_path / "weights"), write_large(tmp_path / "other", b"two")
    first = cache.content_hash(path)
    other.replace(path)
    assert cache.content_hash(path) != first


def test_a_damaged_note_is_made_again(tmp_path: Path) -> None:
    path = write_large(tmp_path / "weights")
    first = cache.content_hash(path)
    (note,) = (cache.cache_root() / "hashes").iterdir()
    note.write_text("{")
    assert cache.content_hash(path) == first


def test_a_small_file_leaves_no_note(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    assert cache.content_hash(tmp_path / "small") == hashlib.sha256(b"x").hexdigest()
    assert not (cache.cache_root() / "hashes").exists()


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: cannot be read"):
        cache.content_hash(tmp_path / "nothing")


def module(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_a_key_follows_texts_files_and_the_source_of_modules(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    keys = [
        cache.key("x", tmp_path / "a"), cache.key("y", tmp_path / "a"), cache.key("x", tmp_path / "b"), cache.key("x"),
        cache.key(module(tmp_path / "one.py", "A = 1\n")), cache.key(module(tmp_path / "two.py", "A = 2\n")),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert cache.key("x", tmp_path / "a") == keys[0]
    (tmp_path / "a").write_bytes(b"2")
    assert cache.key("x", tmp_path / "a") != keys[0]


def test_parts_do_not_run_into_each_other() -> None:
    assert cache.key("ab", "c") != cache.key("a", "bc")
