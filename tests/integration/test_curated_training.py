"""A run on a curated folder: its tasks, its card in the report, and the warning about an exam that was not kept out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.data.curate import curate
from mftcoder.app.results.report import report
from mftcoder.benchmarks.catalogue import load
from mftcoder.config.load import load_config
from mftcoder.curation.pipeline.recipe import parse_recipe
from mftcoder.data.prepared.store import prepare
from mftcoder.data.records.curated import described
from mftcoder.errors import ConfigError, DataError
from tests.forked import run as mft


def write(path: Path, first: int, count: int) -> Path:
    rows = ({"prompt": f"Which number follows {n}?", "completion": str(n + 1)} for n in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curated(folder: Path, name: str = "clean", **fields: Any) -> Path:
    raw = {
        "tasks": {
            "next": {
                "path": str(write(folder / "next.jsonl", 0, 12)),
                "validation": str(write(folder / "held.jsonl", 50, 4)),
            },
            "other": str(write(folder / "other.jsonl", 100, 12)),
        },
        "steps": [{"decontaminate": {"benchmarks": "mini"}}],
        "output_dir": str(folder / name),
        **fields,
    }
    return curate(parse_recipe(raw, origin="recipe.yaml")).folder


def config(folder: Path, model: Path, tasks: Any) -> Path:
    path = folder / "config.json"
    fields = {
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "adapter": {"type": "lora", "lora_rank": 2},
        "tasks": tasks,
        "data": {"max_length": 64, "cache_dir": str(folder / "cache"), "val_size": 0},
        "train": {"max_steps": 1, "per_device_train_batch_size": 1, "report_to": []},
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }
    path.write_text(json.dumps(fields))
    return path


def write_metrics(folder: Path, task: str, source: str) -> Path:
    score = {"k": 1, "value": 0.5, "low": 0.4, "high": 0.6, "problems": 10, "samples_per_problem": 1}
    path = folder / f"metrics_{task}_tuned.json"
    path.write_text(
        json.dumps({"task": task, "model": "tuned", "scores": {"pass@1": score}, "settings": {"data": source}})
    )
    return path


def test_a_run_on_a_curated_folder_names_its_cards_and_the_exams_that_were_not_kept_out(
    tmp_path: Path, tiny_llama_dir: Path, said: Callable[[], str]
) -> None:
    clean = curated(tmp_path)
    assert mft("train", config(tmp_path, tiny_llama_dir, str(clean))).returncode == 0
    run = tmp_path / "run"
    data = json.loads((run / "data.json").read_text())
    assert {task: facts["validation_samples"] for task, facts in data["tasks"].items()} == {"next": 4, "other": 0}
    source = load("mini").source
    assert data["curation"] == {
        task: {"cards": [str(clean / "card.html")], "exams": {"mini": source}} for task in data["tasks"]
    }
    said()
    page = report([run, write_metrics(tmp_path, "mini", source)]).read_text()
    assert f"data card of other: {clean / 'card.html'}" in page
    assert "never decontaminated" not in page + said()
    page = report([run, write_metrics(tmp_path, "humaneval", "x")]).read_text()
    sentence = "run was trained on next, other, never decontaminated against humaneval"
    assert sentence in page
    assert f"warning: {sentence}" in said()
    other = "mini.jsonl (sha256 0123456789abcdef)"
    assert "never decontaminated against mini" in report([run, write_metrics(tmp_path, "mini", other)]).read_text()


def test_a_card_counts_only_for_files_that_are_as_it_describes_them(
    tmp_path: Path, tiny_llama_dir: Path, said: Callable[[], str]
) -> None:
    clean = curated(tmp_path)
    loaded = load_config(config(tmp_path, tiny_llama_dir, str(clean)))
    with (clean / "next" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Added?", "completion": "Yes."}) + "\n")
    store = prepare(loaded)
    found = described(store.tasks, store.training_files)
    assert found["next"] == {"cards": (), "exams": {}}
    assert found["other"]["cards"] == (str(clean / "card.html"),)
    assert "task next: " in said()


def test_a_folder_that_is_curated_again_keeps_what_is_known_of_its_input(tmp_path: Path) -> None:
    clean = curated(tmp_path)
    again = curated(tmp_path, "again", tasks=str(clean), steps=["dedup"])
    manifest = json.loads((again / "manifest.json").read_text())
    assert manifest["exams"] == {task: {"mini": load("mini").source} for task in ("next", "other")}
    mixed = {"next": {"files": [str(clean / "next"), str(write(tmp_path / "new.jsonl", 900, 3))]}}
    manifest = json.loads((curated(tmp_path, "mixed", tasks=mixed, steps=["dedup"]) / "manifest.json").read_text())
    assert manifest["exams"] == {"next": {}}, "a file that was never decontaminated is among them"


def test_a_whole_folder_is_refused_as_one_task_and_a_plain_one_as_all_tasks(
    tmp_path: Path, tiny_llama_dir: Path
) -> None:
    clean = curated(tmp_path)
    loaded = load_config(config(tmp_path, tiny_llama_dir, {"all": str(clean)}))
    with pytest.raises(DataError, match="is a whole folder of `mft data`, with validation and dropped records in it"):
        prepare(loaded)
    with pytest.raises(ConfigError, match="is not a folder that `mft data curate` made"):
        load_config(config(tmp_path, tiny_llama_dir, str(tmp_path)))
