"""The scratch folder of a slot: nothing of one program is left for the next, whatever the program did to the folder."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mftcoder.execution.isolation.scratch import Scratch, lock, remove_tree, remove_unlocked


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory if possible: making and removing a folder on a disk may take milliseconds."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        path = Path(folder, "slot")
        path.mkdir()
        yield path


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    folder = Scratch(str(tmp_path), None)
    folder.clear()
    return folder


def deep_folder(top: Path, levels: int) -> None:
    """Folders that are too deep for any path, with a file in each; made by a process that changes its working folder step by step."""
    script = (
        f"import os\nfor n in range({levels}):\n"
        "    open('f', 'w').close()\n    os.mkdir('x' * 255 if n % 2 else 'y')\n    os.chdir('x' * 255 if n % 2 else 'y')\n"
    )
    subprocess.run([sys.executable, "-S", "-c", script], cwd=top, check=True)


def test_a_folder_deeper_than_python_can_recurse_is_removed(scratch: Scratch, tmp_path: Path) -> None:
    deep_folder(Path(scratch.path), 1100)
    scratch.clear()
    assert not list(Path(scratch.path).iterdir())
    deep_folder(Path(scratch.path), 50)
    remove_tree(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folders_and_files_without_rights_are_removed(scratch: Scratch) -> None:
    inner = Path(scratch.path, "a/b")
    inner.mkdir(parents=True)
    (inner / "file").touch(0o000)
    for folder in (inner, inner.parent, Path(scratch.path)):
        folder.chmod(0)
    scratch.clear()
    assert not list(Path(scratch.path).iterdir())


def test_the_next_program_gets_a_new_folder(scratch: Scratch, tmp_path: Path) -> None:
    """Not the emptied old one, which would keep its mode, times and attributes."""
    path = Path(scratch.path)
    path.chmod(0o777)
    os.utime(path, (7, 7))
    before = path.stat()
    (tmp_path / "beside").write_text("left by a program that has the same user id")
    scratch.clear()
    after = path.stat()
    assert after.st_mode & 0o777 == 0o700 and after.st_mtime != before.st_mtime
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_a_program_has_replaced_by_a_link_is_a_folder_again(scratch: Scratch, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    Path(scratch.path).rmdir()
    Path(scratch.path).symlink_to(elsewhere)
    scratch.clear()
    assert not Path(scratch.path).is_symlink() and (elsewhere / "file").read_text() == "kept"


def test_links_are_removed_and_never_followed(scratch: Scratch, tmp_path: Path) -> None:
    (tmp_path.parent / "outside").mkdir(exist_ok=True)
    (tmp_path.parent / "outside" / "file").write_text("kept")
    Path(scratch.path, "link").symlink_to(tmp_path.parent / "outside")
    Path(scratch.path, "folder").mkdir()
    Path(scratch.path, "folder/link").symlink_to(tmp_path.parent / "outside")
    scratch.clear()
    assert (tmp_path.parent / "outside" / "file").read_text() == "kept"


def test_only_named_entries_are_kept(scratch: Scratch) -> None:
    scratch.write({"candidate.o": "1", "classes/a/B.class": "2", "tests.cpp": "3"})
    scratch.clear(keep=("candidate.o", "classes"))
    left = sorted(str(path.relative_to(scratch.path)) for path in Path(scratch.path).rglob("*") if path.is_file())
    assert left == ["candidate.o", "classes/a/B.class"]


def test_texts_are_written_to_the_byte(scratch: Scratch) -> None:
    scratch.write({"a": "é\r\n\ud800"})
    assert Path(scratch.path, "a").read_bytes() == b"\xc3\xa9\r\n\xed\xa0\x80"


def test_a_folder_whose_owner_lives_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    held = lock(folder)
    with pytest.raises(OSError):
        remove_unlocked(folder)
    fcntl.flock(held, fcntl.LOCK_UN)
    remove_unlocked(folder)
    os.close(held)
    assert not folder.exists()
