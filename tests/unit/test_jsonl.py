"""Folders and journals appear whole, and one process at a time writes a journal."""

from pathlib import Path
from typing import Any

import pytest

from mftcoder import jsonl
from mftcoder.errors import GenerationError
from mftcoder.jsonl import JournalFile, atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_its_block_succeeds(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as temporary:
        (temporary / "file").write_text("content")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").read_text() == "content"
    assert names(tmp_path) == ["made"]


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "made") as temporary:
        (temporary / "file").write_text("content")
        raise RuntimeError
    assert names(tmp_path) == []


def test_the_folder_of_a_faster_process_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as temporary:
        (temporary / "file").write_text("mine")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("theirs")
    assert (tmp_path / "made" / "file").read_text() == "theirs"
    assert names(tmp_path) == ["made"]


def test_what_a_killed_process_left_is_removed_and_the_folder_of_a_living_one_stays(tmp_path: Path) -> None:
    left, other = tmp_path / ".made.0123abcd.tmp", tmp_path / ".made-too.0123abcd.tmp"
    for folder in (left, other):
        (folder / "half").mkdir(parents=True)
    with atomic_folder(tmp_path / "made") as living:
        (living / "file").write_text("first")
        assert names(tmp_path) == sorted([other.name, living.name])
        with atomic_folder(tmp_path / "made") as second:
            assert names(tmp_path) == sorted([other.name, living.name, second.name])
            (second / "file").write_text("second")
    assert names(tmp_path) == [other.name, "made"]
    assert (tmp_path / "made" / "file").read_text() == "second"


def test_a_journal_has_one_process_even_if_it_is_replaced_while_another_one_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else both would hold a lock, each of its own file, and the answers of the first would be lost."""
    first = JournalFile(tmp_path / "journal.jsonl", {"task": "mini"}, GenerationError)
    lock = jsonl.lock

    def lock_late(file: Any, **options: bool) -> None:
        monkeypatch.setattr(jsonl, "lock", lock)
        first.rewrite([])  # between the open and the lock of the second process
        lock(file, **options)

    monkeypatch.setattr(jsonl, "lock", lock_late)
    with pytest.raises(
        GenerationError, match=r"another process is writing into it\. Wait for it, or choose another --out"
    ):
        JournalFile(tmp_path / "journal.jsonl", {"task": "mini"}, GenerationError)
    first.append({"number": 1})
    first.close()
    again = JournalFile(tmp_path / "journal.jsonl", {"task": "mini"}, GenerationError)
    again.close()
    assert again.records == [{"number": 1}]
