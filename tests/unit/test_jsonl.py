"""Files, folders and journals appear whole, and one process at a time writes a journal."""

import os
import random
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder import jsonl
from mftcoder.cli.group import MACHINE_ERRORS
from mftcoder.errors import DataError, GenerationError
from mftcoder.jsonl import (
    JournalFile,
    append_line,
    atomic_folder,
    atomic_path,
    locked,
    open_for_writing,
    scratch_folder,
    write_jsonl,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bytes_of(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(1 << 17))


def lines_of(path: Path) -> None:
    write_jsonl(path, [{"text": "x" * 1000}] * 100)


def arrays_of(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.zeros(1 << 17))


def gzipped_lines_of(path: Path) -> None:
    with atomic_path(path) as temporary, open_for_writing(temporary, compressed=True) as file:
        file.write(random.Random(0).randbytes(1 << 17))


def files_of_a_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "one").write_bytes(bytes(1 << 17))


def test_a_folder_appears_only_when_its_block_succeeds(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as temporary:
        (temporary / "file").write_text("content")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").read_text() == "content"
    assert names(tmp_path) == ["made"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: is a device or a pipe"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


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


def test_what_a_killed_process_left_of_a_file_is_removed_and_the_file_of_a_living_one_stays(tmp_path: Path) -> None:
    left, other = tmp_path / ".made.0123abcd.tmp", tmp_path / ".made-too.0123abcd.tmp"
    for file in (left, other):
        file.write_text("half")
    with atomic_path(tmp_path / "made") as living:
        living.write_text("first")
        assert names(tmp_path) == sorted([other.name, living.name])
        write_text(tmp_path / "made", "second")
        assert names(tmp_path) == sorted([other.name, living.name, "made"])
    assert names(tmp_path) == [other.name, "made"]
    assert (tmp_path / "made").read_text() == "first"


def test_a_scratch_folder_goes_with_its_block_and_with_a_killed_process_at_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".mine.0123abcd.tmp" / "half").mkdir(parents=True)
    with scratch_folder("mine") as one, scratch_folder("mine") as other:
        assert names(tmp_path) == sorted([one.name, other.name])
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [bytes_of, lines_of, arrays_of, gzipped_lines_of, files_of_a_folder])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, write: Callable[[Path], object]) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of a write that knows no name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write(tmp_path / "big.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "big.jsonl")
    assert caught.value.errno in MACHINE_ERRORS
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child only waits
def test_a_fork_does_not_hold_the_locks_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a killed command, of which a worker still lives, would keep the same command from going on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with locked(tmp_path / "lock"), scratch_folder("mine") as scratch, atomic_path(tmp_path / "file") as temporary:
        waits, goes_on = os.pipe()
        started, starts = os.pipe()
        child = os.fork()
        if not child:
            os.close(goes_on)
            os.write(starts, b"1")
            os.read(waits, 1)  # until the parent closes its end
            os._exit(0)
        os.read(started, 1)
        temporary.touch()
        kept = [os.open(path, os.O_RDONLY) for path in (scratch, temporary)]
    for descriptor in kept:
        jsonl.lock(descriptor)
    with locked(tmp_path / "lock"):
        os.close(goes_on)
    os.waitpid(child, 0)
    for descriptor in (*kept, waits, started, starts):
        os.close(descriptor)


def test_a_program_that_another_thread_is_starting_does_not_keep_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between fork and exec it has a copy of every open file, which a duplicate stands for here."""
    path, copies, lock = tmp_path / "journal.jsonl", list[int](), jsonl.lock

    def lock_and_copy(file: Any, **options: bool) -> None:
        lock(file, **options)
        copies.append(os.dup(file if isinstance(file, int) else file.fileno()))

    monkeypatch.setattr(jsonl, "lock", lock_and_copy)
    journal = JournalFile(path, {"task": "mini"}, GenerationError)
    journal.rewrite([{"n": 1}])  # locks the file that it writes, and opens that again
    journal.close()
    again = JournalFile(path, {"task": "mini"}, GenerationError)
    assert len(copies) == 4 and again.records == [{"n": 1}]
    again.close()
    for copy in copies:
        os.close(copy)


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


@pytest.mark.parametrize("before", [b"", b'{"a": 1}\n', b'{"a": 1}', b'{"a": 1}\n{"cut": '])
def test_an_appended_line_stands_on_its_own(before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(before)
    append_line(path, b'{"b": 2}')
    assert path.read_bytes().splitlines() == [*before.splitlines(), b'{"b": 2}']
    append_line(tmp_path / "new.jsonl", b"{}")
    assert (tmp_path / "new.jsonl").read_bytes() == b"{}\n"
