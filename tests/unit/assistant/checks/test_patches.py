"""Patches that are made apply with other programs too; patches that do not fit are refused."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.assistant.checks.patches import apply_patch, make_patch, parse_patch, patch_of
from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.rounds import RefusedAnswer

OLD = "".join(f"line {number}\n" for number in range(20))
TEXTS = st.lists(st.sampled_from(["a", "b", "-", "+", " ", "", "@@ -1 +1 @@", "--- x", "é"]), max_size=12).map(
    "\n".join
)


@given(TEXTS, TEXTS)
def test_a_patch_of_any_two_texts_applies(old: str, new: str) -> None:
    patch = make_patch("a/b.py", old, new)
    assert (apply_patch(patch, "a/b.py", old) if patch else old) == new


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("new", [OLD.replace("line 3\n", ""), OLD[:-1], f"first\n{OLD}last"])
def test_git_applies_what_was_made(tmp_path: Path, new: str) -> None:
    (tmp_path / "a.py").write_text(OLD)
    patch = make_patch("a.py", OLD, new)
    subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a.py").read_text() == new


@pytest.mark.parametrize("program", [["git", "apply", "-"], ["patch", "-p1", "--fuzz=0", "--binary"]])
@pytest.mark.parametrize(
    "content", [b"x = 1\r\ny = 2\r\n", b"\xef\xbb\xbfx = 1\ny = 2\n", b"\xef\xbb\xbfx = 1\r\ny = 2"]
)
def test_patches_apply_to_the_line_ends_and_the_byte_order_mark_of_a_file(
    tmp_path: Path, content: bytes, program: list[str]
) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"needs {program[0]}")
    (tmp_path / "my code.py").write_bytes(content)
    file = WorkingFolder(tmp_path).read("my code.py")
    patch = patch_of(file, file.text.replace("y = 2", "y = 3"))
    subprocess.run(program, input=patch.encode(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "my code.py").read_bytes() == content.replace(b"2", b"3")


@pytest.mark.parametrize("path", ["b.py", "../a.py", "x/../a.py", "/a.py", "/dev/null", "..\\a.py"])
def test_only_the_named_file_may_change(path: str) -> None:
    for names in ((path, "a.py"), ("a.py", path)):
        patch = f"--- {names[0]}\n+++ {names[1]}\n@@ -1,1 +1,1 @@\n-line 0\n+x\n"
        with pytest.raises(RefusedAnswer) as error:
            apply_patch(patch, "a.py", OLD)
        assert error.value.code == "other_file"


@pytest.mark.parametrize(
    "hunks, code",
    [
        ("@@ -2,1 +2,1 @@\n-line 0\n+x\n", "does_not_apply"),
        ("@@ -99,1 +99,1 @@\n-line 0\n+x\n", "does_not_apply"),
        ("@@ -5,1 +5,1 @@\n-line 4\n+x\n@@ -1,1 +1,1 @@\n-line 0\n+x\n", "does_not_apply"),
        ("@@ -1,3 +1,3 @@\n-line 0\n+x\n", "no_patch"),
        ("@@ -1,1 +1,1 @@\n-line 0\n+x\nand more\n", "no_patch"),
        ("make it faster\n", "no_patch"),
        ("", "no_patch"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(hunks: str, code: str) -> None:
    with pytest.raises(RefusedAnswer) as error:
        apply_patch(f"--- a/a.py\n+++ b/a.py\n{hunks}", "a.py", OLD)
    assert error.value.code == code


def test_added_lines_are_numbered_as_in_the_new_file() -> None:
    new = OLD.replace("line 3\n", "").replace("line 15\n", "line 15\nx\ny\n")
    [file] = parse_patch(make_patch("a.py", OLD, new))
    rows = [row for hunk in file.hunks for row in hunk.added]
    assert [new.splitlines()[row - 1] for row in rows] == ["x", "y"]
