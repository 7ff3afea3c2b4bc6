import shutil
import subprocess
from pathlib import Path

import pytest

from mftcoder.errors import ModelError
from mftcoder.models.files.manifest import verify, write_manifests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub folder").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "sub folder" / "note.txt").write_text("hello")
    write_manifests(tmp_path)
    return tmp_path


def test_an_untouched_folder_has_no_differences(folder: Path) -> None:
    assert verify(folder) == []


def test_a_changed_a_missing_and_an_extra_file_are_each_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"Weights" * 1000)
    (folder / "sub folder" / "note.txt").unlink()
    (folder / "extra.bin").write_bytes(b"")
    assert verify(folder) == [
        f"{folder / 'extra.bin'}: is not in the manifest",
        f"{folder / 'model.safetensors'}: has changed (by its md5 and sha256)",
        f"{folder / 'sub folder' / 'note.txt'}: is missing",
    ]


def test_one_manifest_is_enough(folder: Path) -> None:
    (folder / "MANIFEST.sha256").unlink()
    assert verify(folder) == []


@pytest.mark.skipif(shutil.which("md5sum") is None, reason="needs coreutils")
def test_md5sum_and_sha256sum_agree(folder: Path) -> None:
    for tool, manifest in (("md5sum", "MANIFEST.md5"), ("sha256sum", "MANIFEST.sha256")):
        subprocess.run([tool, "--check", "--strict", "--quiet", manifest], cwd=folder, check=True)


def test_a_folder_without_a_manifest_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to verify it against"):
        verify(tmp_path)


def test_a_broken_manifest_line_is_named(folder: Path) -> None:
    (folder / "MANIFEST.md5").write_text("nonsense\n")
    with pytest.raises(ModelError, match=r"MANIFEST.md5:1: is not a line of md5sum"):
        verify(folder)
