"""The environment of llmcompressor stands on the packages of the running one."""

from pathlib import Path

import pytest

from mftcoder.models.export.quantized.environment import _site_packages


def test_packages_of_an_environment_below_the_running_one_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise pip would install gigabytes again."""
    below = tmp_path / "lib/python3/site-packages"
    before = list(_site_packages())
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.syspath_prepend(str(below))
    assert [path for path in _site_packages() if path not in before] == [below]
