"""The published example configuration trains as it is: `mft train config.json`, with a small local model in its place."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.forked import run as mft

EXAMPLE = {
    **json.loads((Path(__file__).parents[1] / "golden" / "published" / "lora_example.json").read_text()),
    "data_paths": "[DATA/squares,DATA/next]",
    "output_dir": "OUT",
    "tb_dir": "OUT/tb",
    "pretrained_model_path": "MODEL",
    "data_split": "80,20,0",
    "num_train_epochs": 1,
    "max_train_steps": 4,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.005,
    "seq_length": 256,
    "log_interval": 1,
    "evaluation_steps": 2,
    "num_warmup_steps": 0.05,
}


def train(folder: Path, model: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    text = json.dumps({**EXAMPLE, **changes})
    for name, path in (("DATA", folder), ("OUT", folder / "run"), ("MODEL", model)):
        text = text.replace(name, str(path))
    (folder / "config.json").write_text(text)
    return mft("train", folder / "config.json")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for task, question in (("squares", "What is {} squared?"), ("next", "What follows {}?")):
        (tmp_path / task).mkdir()
        with (tmp_path / task / "train.jsonl").open("w") as file:
            for n in range(60):
                answer = str(n * n if task == "squares" else n + 1)
                turns = [{"role": "human", "content": question.format(n)}, {"role": "bot", "content": answer}]
                file.write(json.dumps({"id": n, "data_name": task, "chat_rounds": turns}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding_mode": "pack", "peft_type": None, "weighted_loss_mode": "case1"},
        {"padding_mode": "concat", "tokenize_mode": "sst", "weighted_loss_mode": "case4", "task_weights": "[1,2]"},
        {"weighted_loss_mode": "coba", "coba_warmup_steps": 1, "coba_history_length": 2, "coba_update_interval": 1}
        | {"role_markers": {"system": "S: ", "user": "Q: ", "assistant": "A: "}},
        {"weighted_loss_mode": "selfpaced", "selfpaced_history_length": 2},
    ],
    ids=["as published", "full, packed", "sst, concatenated", "coba, own markers", "self-paced"],
)
def test_the_published_example_trains(tasks: Path, tiny_llama_dir: Path, changes: dict[str, object]) -> None:
    done = train(tasks, tiny_llama_dir, **changes)
    assert done.returncode == 0, done.stderr
    assert "these keys of the published config have no effect here: tokenizer_type" in done.stderr
    validation = json.loads((tasks / "run" / "summary.json").read_text())["validation"]
    assert all(validation["last"][task] < validation["first"][task] for task in ("squares", "next"))


def test_what_is_refused_ends_before_anything_is_loaded(tasks: Path, tmp_path: Path) -> None:
    done = train(tasks, tmp_path / "no-model", weighted_loss_mode="case5", load_raw_dataset=False)
    assert done.returncode == 2
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["weighted_loss_mode", "load_raw_dataset"]
    assert not (tasks / "run").exists()
