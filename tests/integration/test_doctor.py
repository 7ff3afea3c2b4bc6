"""`mft doctor` through the real command: exit code 0 whatever is missing, and each lack with its meaning and remedy."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mftcoder.app import doctor
from mftcoder.cli import cli
from mftcoder.kernels import limits
from tests.conftest import REPOSITORY


def findings() -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(cli, ["doctor", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return {f"{finding['area']}/{finding['name']}": finding for finding in json.loads(result.stdout)}


def test_every_area_is_examined() -> None:
    areas = {name.split("/")[0] for name in findings()}
    assert areas == {"software", "devices", "attention", "sandbox", "toolchains", "room", "network"}


def test_a_bare_machine_is_told_what_each_lack_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = findings()
    assert found["toolchains/rust"]["state"] == "note"
    assert found["toolchains/rust"]["meaning"] == "answers in rust cannot be run"
    assert "rustup" in found["toolchains/rust"]["remedy"]
    assert found["network/Hub"]["state"] == "note"
    assert found["toolchains/python"]["value"].endswith(sys.version.split()[0])


def test_on_a_narrow_terminal_no_path_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = "/a" * 60
    doctor._print([doctor.Finding("software", "mftcoder", "ok", path)])
    assert "".join(line[-40:].split()[-1] for line in capsys.readouterr().out.splitlines()) == path


def test_every_extra_is_listed_with_what_its_lack_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    absent = {row[0] for row in doctor.EXTRAS} - {"torch"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else installed(name))
    listed = [
        finding for finding in findings().values() if finding["area"] == "software" and finding["state"] == "note"
    ]
    named = {re.search(r"mftcoder\[(\w+)\]", finding["remedy"])[1] for finding in listed}  # type: ignore[index]
    offered = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert named == offered.keys() - {"dev", "bench", "all"}
    assert all(finding["value"] == "not installed" and finding["meaning"] for finding in listed)


def test_the_table_keeps_brackets_in_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    monkeypatch.setenv("COLUMNS", "200")
    assert "pip install 'mftcoder[gguf]'" in CliRunner().invoke(cli, ["doctor"]).stdout


def test_an_old_gpu_and_a_missing_compiler_are_listed_with_what_they_cost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = SimpleNamespace(name="Tesla T4", total_memory=16 << 30, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(limits, "lack_of_triton", lambda: "no C compiler is found")
    found = findings()
    assert found["devices/cuda:0"]["value"] == "Tesla T4, 16 GiB, compute 7.5"
    for what in ("bfloat16", "FlashAttention", "Triton"):
        finding = found[f"devices/{what} on cuda:0"]
        assert finding["state"] == "lack" and finding["value"] and finding["meaning"]
    assert "model.dtype=float32" in found["devices/bfloat16 on cuda:0"]["remedy"]
    assert "gcc" in found["devices/Triton on cuda:0"]["remedy"]


@pytest.mark.parametrize("installed", [(), ("flash_attn_interface",)])
def test_a_newer_flash_attention_that_a_gpu_could_have_is_listed_with_what_its_lack_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: tuple[str, ...]
) -> None:
    facts = SimpleNamespace(name="H100", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(limits, "lack_of_triton", lambda: None)
    for module in installed:
        (tmp_path / f"{module}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = findings()
    listed = {name.removeprefix("attention/"): found[name]["state"] for name in found if "FlashAttention" in name}
    if installed:
        assert listed == {"FlashAttention 3": "ok"}
        return
    assert listed == {"FlashAttention 3": "note", "FlashAttention 4": "note"}
    finding = found["attention/FlashAttention 4"]
    assert finding["value"] == "flash_attn.cute.interface is not installed"
    assert "14% of a full step" in finding["meaning"] and finding["remedy"] == "pip install --pre flash-attn-4"
