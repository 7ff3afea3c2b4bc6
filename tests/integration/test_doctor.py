"""`mft doctor` through the real command: exit code 0 whatever is missing, and each lack with its meaning and remedy."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mftcoder.cli import cli


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


def test_the_table_keeps_brackets_in_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    monkeypatch.setenv("COLUMNS", "200")
    assert "pip install 'mftcoder[gguf]'" in CliRunner().invoke(cli, ["doctor"]).stdout
