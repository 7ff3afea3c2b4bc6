"""QLoRA through the real command: training over 4 and 8 bits, resuming, exporting into the original weights, answering."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import run as mft

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")

QUESTIONS = {"squares": "What is {} squared?", "next": "What follows {}?"}


def write_config(folder: Path, base: Path, **sections: dict[str, Any]) -> Path:
    for task, question in QUESTIONS.items():
        (folder / task).mkdir(parents=True)
        turns = [(question.format(n), str(n * n if task == "squares" else n + 1)) for n in range(40)]
        rows = [{"chat_rounds": [{"role": "human", "content": q}, {"role": "bot", "content": a}]} for q, a in turns]
        (folder / task / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "model": {"model_name_or_path": str(base), "quantization": "4bit"},
        "adapter": {"lora_rank": 4},
        "tasks": {task: str(folder / task) for task in QUESTIONS},
        "data": {"max_length": 128, "val_size": 0.2},
        "train": {
            "max_steps": 6,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.02,
            "save_steps": 3,
            "report_to": [],
        },
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }
    for section, fields in sections.items():
        config[section].update(fields)
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def adapter(run: Path, step: int) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"step-{step:08}" / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("quantization", "train"),
    [
        ("4bit", {"gradient_checkpointing": True}),
        ("8bit", {"max_steps": 8}),
        ("fp8", {"gradient_checkpointing": True}),
        ("4bit-fp8", {}),
    ],
)
def test_every_task_is_learned_over_weights_in_bits(
    tmp_path: Path, tiny_llama_dir: Path, quantization: str, train: dict[str, Any]
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, model={"quantization": quantization}, train=train)
    done = mft("train", config)
    assert done.returncode == 0, done.stderr
    assert "MatMul8bitLt" not in done.stderr and "kernels" not in done.stderr
    assert ("products in fp8 are emulated, at no gain in speed: a CPU has no" in done.stdout) == ("fp8" in quantization)
    validation = json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]
    assert all(validation["last"][task] < validation["first"][task] for task in QUESTIONS)


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path: Path, tiny_llama_dir: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, adapter={"lora_dropout": 0.1})
    assert mft("train", config).returncode == 0
    whole = {name: weight.clone() for name, weight in adapter(tmp_path / "run", 6).items()}
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "model" / "adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = mft("train", config)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout and "step-00000003" in again.stdout
    assert all(whole[name].equal(adapter(tmp_path / "run", 6)[name]) for name in whole)


def test_the_export_is_the_original_base_with_the_addition_and_says_what_that_changed(
    tmp_path: Path, tiny_llama_dir: Path
) -> None:
    config = write_config(tmp_path, tiny_llama_dir, model={"dtype": "float32"}, train={"max_steps": 3})
    assert mft("train", config).returncode == 0
    done = mft("export", tmp_path / "run", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "merged into the original weights, trained over 4bit: loss " in done.stderr
    merged, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny_llama_dir / "model.safetensors")
    trained = adapter(tmp_path / "run", 3)
    name = "model.layers.0.mlp.up_proj"
    down, up = (trained[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    addition = 32 / 4 * up @ down
    assert (merged[f"{name}.weight"] - base[f"{name}.weight"] - addition).abs().max() < 1e-6
    assert merged["model.embed_tokens.weight"].equal(base["model.embed_tokens.weight"])
    assert "4bit, bitsandbytes" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("quantization", "dtype", "slack"),
    [("4bit", "float32", 1e-4), ("8bit", "float32", 1e-2), ("fp8", "bfloat16", 2e-2), ("4bit-fp8", "bfloat16", 2e-2)],
)
def test_the_export_can_be_the_base_as_it_was_held(
    tmp_path: Path, tiny_llama_dir: Path, quantization: str, dtype: str, slack: float
) -> None:
    """Then nothing changes but, with 8 bits and fp8, the rounding of what goes into each layer."""
    config = write_config(tmp_path, tiny_llama_dir, model={"dtype": dtype, "quantization": quantization})
    assert mft("train", config).returncode == 0
    done = mft("export", tmp_path / "run", tmp_path / "out", "--as-trained")
    assert done.returncode == 0, done.stderr
    assert f"merged into what {quantization} held" in done.stderr
    trained, merged, divergence = (float(number) for number in re.findall(r"\d+\.\d+", done.stderr)[:3])
    assert merged == pytest.approx(trained, rel=slack)
    assert divergence < max(slack, 1e-3)
    base = load_file(tiny_llama_dir / "model.safetensors")
    merged_weights = load_file(tmp_path / "out" / "model.safetensors")
    assert merged_weights["model.embed_tokens.weight"].equal(
        base["model.embed_tokens.weight"].to(getattr(torch, dtype))
    )
    assert not merged_weights["model.layers.0.mlp.up_proj.weight"].equal(base["model.layers.0.mlp.up_proj.weight"])


def test_a_run_over_whole_weights_has_no_other_base_to_merge_into(tmp_path: Path, tiny_llama_dir: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir, model={"quantization": None}, train={"max_steps": 1})
    assert mft("train", config).returncode == 0
    refused = mft("export", tmp_path / "run", tmp_path / "out", "--as-trained")
    assert refused.returncode == 2 and "was not trained over a base in 4 or 8 bits" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_answers_come_from_the_base_in_bits_or_from_the_merged_one(tmp_path: Path, tiny_llama_dir: Path) -> None:
    assert mft("train", write_config(tmp_path, tiny_llama_dir, train={"max_steps": 2})).returncode == 0
    words = ("generate", tmp_path / "run", "--task", "mini", "--limit", "2", "--max-new-tokens", "8")
    for name, flags in (("merged", ()), ("trained", ("--as-trained",))):
        done = mft(*words, "--out", tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        settings = json.loads((tmp_path / name / "settings_mini_run.json").read_text())
        assert settings.get("base") == ("4bit" if flags else None)
    refused = mft("generate", tiny_llama_dir, *words[2:], "--out", tmp_path / "plain", "--as-trained")
    assert refused.returncode == 2 and "was not trained over a base in 4 or 8 bits" in refused.stderr


def test_layers_that_keep_pefts_forward_are_named(tmp_path: Path, tiny_llama_dir: Path) -> None:
    done = mft("train", write_config(tmp_path, tiny_llama_dir, adapter={"lora_dropout": 0.1}, train={"max_steps": 1}))
    assert "14 LoRA layers keep peft's slower forward: dropout" in done.stdout


def test_the_plan_says_how_much_is_held_in_bits(tmp_path: Path, tiny_llama_dir: Path) -> None:
    config = write_config(tmp_path, tiny_llama_dir)
    done = mft("validate", config)
    assert done.returncode == 0, done.stderr
    assert "held in 4 bits" in done.stdout
    done = mft("validate", config, "model.quantization=fp8")
    assert "held in fp8" in done.stdout and "fp8 (e4m3), emulated: the same numbers, no gain in speed" in done.stdout
    refused = mft("validate", config, "adapter.type=full")
    assert refused.returncode == 2 and "Set adapter.type: lora" in refused.stderr
