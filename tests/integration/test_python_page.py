"""docs/python.md: every example runs, in a folder with a tiny model and two tasks, and gives what the page says."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder import train
from tests.integration.test_train_cli import write_config, write_tasks

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
Section = Callable[[str], dict[str, Any]]


def sections() -> dict[str, list[str]]:
    """Heading -> its code blocks."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.fixture
def section(tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Section:
    """Runs all blocks below a heading, in one namespace, which it returns."""
    shutil.copytree(tiny_llama_dir, tmp_path / "models" / "base")
    write_config(tmp_path, tmp_path / "models" / "base", write_tasks(tmp_path / "data"))
    (tmp_path / "config.json").rename(tmp_path / "my.yaml")  # JSON is YAML
    monkeypatch.chdir(tmp_path)

    def run(title: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "example"}
        for block in sections()[title]:
            exec(compile(block, f"docs/python.md, {title}", "exec"), namespace)
        return namespace

    return run


def test_every_section_with_code_has_a_test_here() -> None:
    tested = set(re.findall(r'section\("(.+?)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert {title for title, blocks in sections().items() if blocks} == tested


def test_a_run(section: Section, capsys: pytest.CaptureFixture[str]) -> None:
    found = section("A run")
    assert found["data"].rows()[0]["task"] == "squares"
    assert found["result"].steps == 4 and found["result"].best_step in (3, 4)
    assert found["files"] == [Path("generations_mini_my.json")] and found["scores"][0].task == "mini"
    assert len(capsys.readouterr().out.splitlines()) == 3  # those of the page


def test_callbacks_and_a_model_that_is_loaded_already(section: Section) -> None:
    found = section("Callbacks, and a model that is loaded already")
    assert len(found["losses"]) == 4 and set(found["losses"][0]) == {"squares", "next"}
    assert Path("generations_mini_before.json").is_file()


def test_plain_pytorch_trains_two_tasks_with_coba(section: Section) -> None:
    found = section("The objective and the balancers in plain PyTorch")
    weights = found["objective"].weights
    # How far they move depends on the tiny tokenizer, which is trained on this project's own sources.
    assert sum(weights.values()) == pytest.approx(1) and weights["squares"] != pytest.approx(0.5, abs=1e-6)
    after = found["objective"].mean_losses(*(part.detach() for part in found["losses_of"](found["held_out"])))
    assert all(loss < 4.5 for loss in after.values())  # of 6.9 for a model that knows nothing


def test_a_trainer_of_transformers_has_the_losses_of_mft_train(section: Section) -> None:
    found = section("transformers.Trainer")
    own: list[float] = []
    train(found["config"], on_step=lambda record: own.append(record["loss"]))
    assert len(own) == 6 and own[-1] < own[0] - 0.1
    assert found["trainer"].step_losses == pytest.approx(own, abs=1e-5)


def test_the_sandbox_passes_and_packing(section: Section, capsys: pytest.CaptureFixture[str]) -> None:
    section("The sandbox, pass@k, packing")
    first, second, _, last = capsys.readouterr().out.splitlines()
    assert first.endswith(" passed failed timeout") and second == "0.9166666666666666" and last == "[[0, 1], [3, 2, 4]]"
