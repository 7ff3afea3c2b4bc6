"""Files are read whole or refused, and written as they were."""

import stat
from pathlib import Path

import pytest

from mftcoder.assistant.files import MOST_BYTES, WorkingFolder, parse_place
from mftcoder.errors import ConfigError


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"x = '\xff'\n", "is not UTF-8"),
        (b"a\r\nb\n", "mixes line ends"),
        (b"a\rb\n", "mixes line ends"),
        (b"a\0\n", "NUL"),
        (b"#" * (MOST_BYTES + 1), "more than"),
    ],
)
def test_a_file_that_could_not_be_written_back_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.py").write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        WorkingFolder(tmp_path).read("a.py")


def test_line_ends_byte_order_mark_and_mode_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    path.chmod(0o750)
    folder = WorkingFolder(tmp_path)
    file = folder.read("a.py")
    assert file.text == "a\nb"
    folder.replace(file, "a\nc")
    assert path.read_bytes() == b"\xef\xbb\xbfa\r\nc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


@pytest.mark.parametrize("name", ["../a.py", "/etc/passwd", "x/../../a.py", "link/a.py", "a\0.py", "~nobody-here/a.py"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        WorkingFolder(inner).inside(name)


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    folder = WorkingFolder(tmp_path)
    folder.create("a.py", "1")
    with pytest.raises(ConfigError, match="exists already"):
        folder.create("a.py", "2")
    assert (tmp_path / "a.py").read_text() == "1"


def test_a_file_that_is_read_only_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("1\n")
    path.chmod(0o444)
    folder = WorkingFolder(tmp_path)
    with pytest.raises(ConfigError, match="is read-only; nothing is written"):
        folder.replace(folder.read("a.py"), "2\n")
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("place", ["a.py:0", "a.py:1:0", "a.py:0:1"])
def test_there_is_no_line_0(place: str) -> None:
    with pytest.raises(ConfigError, match="count from 1"):
        parse_place(place)
