"""`python performance/backends.py`: ten steps of a tiny model on every backend, beside the same ten steps on one device.

Goes in: nothing; data and model are made here. Comes out: a Markdown table of backend x mode, with the largest difference of a
loss and of a weight from LocalBackend's, for docs/scaling.md. Takes a few seconds a row on CPUs. Not a measure of speed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODES = {
    "LoRA, packed": ["adapter.type=lora", "data.packing=best_fit"],
    "LoRA, padded, CoBa": [
        "adapter.type=lora",
        "data.packing=none",
        "balancer={name: coba, warmup_steps: 2, window: 4}",
    ],
    "full, packed": ["adapter.type=full", "data.packing=best_fit"],
    "full, padded, CoBa": [
        "adapter.type=full",
        "data.packing=none",
        "balancer={name: coba, warmup_steps: 2, window: 4}",
    ],
}
BACKENDS = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
HYBRID = ("fsdp2, hybrid 2 x 2", 4, ["backend.name=fsdp2", "backend.shard_group_size=2"])
TWO_A_ROW = "backend.context_parallel_size=2"
ROWS = 4


def make_inputs(folder: Path) -> dict[str, Any]:
    """A random two-layer Llama, two tasks, and the config that all runs share."""
    sentences = [f"What is {n} squared? {n * n}" for n in range(40)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "</s>"]
    tokenizer.train_from_iterator(sentences, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), max_position_embeddings=256, **shape)).save_pretrained(
        folder / "model"
    )
    for task, power in (("squares", 2), ("cubes", 3)):
        (folder / task).mkdir()
        lines = [json.dumps({"prompt": f"{n} to the {power}?", "completion": str(n**power)}) for n in range(40)]
        (folder / task / "train.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "model": {"model_name_or_path": str(folder / "model"), "dtype": "float32"},
        "adapter": {"lora_rank": 4},
        "tasks": {task: str(folder / task) for task in ("squares", "cubes")},
        "data": {"chat_template": "chatml", "max_length": 128, "val_size": 0.2, "cache_dir": str(folder / "cache")},
        "train": {"max_steps": 10, "learning_rate": 0.01, "eval_steps": 5, "save_steps": 10, "report_to": []},
        "backend": {"device": "cpu"},
    }


def run(folder: Path, config: dict[str, Any], name: str, world: int, overrides: list[str]) -> Path | str:
    """The run folder, or the error's last line."""
    output = folder / name.replace(" ", "-").replace(",", "")
    path = folder / "config.json"
    path.write_text(json.dumps({**config, "output_dir": str(output)}))
    groups = world // 2 if TWO_A_ROW in overrides else world
    split = f"train.gradient_accumulation_steps={ROWS // groups}"
    spread = ["--nproc", str(world)] if world > 1 else []
    command = [sys.executable, "-m", "mftcoder", "train", str(path), *spread, split, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return output if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def differences(run_folder: Path, expected: Path) -> str:
    """`losses 3e-7, weights 2e-6`: the largest absolute differences."""
    losses, weights = [], []
    for folder in (run_folder, expected):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append(torch.tensor([record["loss"] for record in records if record["kind"] != "balance"]))
        latest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
        (file,) = (latest / "model").glob("*.safetensors")
        weights.append(load_file(file))
    of_weights = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[1])
    return f"losses {float((losses[0] - losses[1]).abs().max()):.0e}, weights {of_weights:.0e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    worlds = parser.parse_args().processes
    cases = [(name, world, [f"backend.name={name}"]) for name in BACKENDS for world in worlds]
    shared = [(f"{name}, two ranks a row", world, [*backend, TWO_A_ROW]) for name, world, backend in cases]
    cases += [*([HYBRID] if 4 in worlds else []), *shared]
    print("| backend | processes | " + " | ".join(MODES) + " |")
    print("|---" * (2 + len(MODES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        config = make_inputs(Path(folder))
        local = {mode: run(Path(folder), config, f"local {mode}", 1, options) for mode, options in MODES.items()}
        for name, world, backend in cases:
            cells = []
            for mode, options in MODES.items():
                found, expected = (
                    run(Path(folder), config, f"{name} {world} {mode}", world, [*options, *backend]),
                    local[mode],
                )
                if isinstance(expected, str):
                    found = f"one device: {expected}"
                cells.append(found if isinstance(found, str) else differences(found, Path(expected)))
            print(f"| {name} | {world} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
