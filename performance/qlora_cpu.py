"""QLoRA beside LoRA on a CPU: losses of five tasks, largest resident memory, and what merging into the original weights changes.

    python performance/qlora_cpu.py MODEL DATA              # DATA: a folder of task folders with train and valid files
    python performance/qlora_cpu.py MODEL DATA --steps 20 --max-length 256

Each variant is `mft train` in a process of its own, after the data was prepared in another one; memory is that process's largest
resident set, loading included. The merged loss is that of `mft export`'s folder on the same validation rows, with the original base and with the base as the bits held it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder.config.load import load_config
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.store import prepare
from mftcoder.kernels import attention
from mftcoder.models.export.source import open_run
from mftcoder.models.loading.load import load_folder
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.step import validate

ATTENTION = "segments"


def write_config(args: argparse.Namespace, folder: Path, quantization: str | None) -> Path:
    """The run's config: small rows, all five tasks in every step's mixture."""
    tasks = {
        path.name: {"path": str(path), "max_samples": args.max_samples}
        for path in sorted(args.data.iterdir())
        if path.is_dir()
    }
    name = quantization or "lora"
    config = {
        "model": {"model_name_or_path": args.model, "quantization": quantization, "attn_implementation": ATTENTION},
        "adapter": {"lora_rank": 16},
        "tasks": tasks,
        "data": {"max_length": args.max_length, "chat_template": "chatml", "max_val_samples": args.val_samples, "sampling": "uniform"},
        "train": {
            "max_steps": args.steps, "gradient_accumulation_steps": args.rows, "learning_rate": 1e-3, "warmup_steps": 2,
            "eval_steps": args.steps, "save_steps": args.steps, "gradient_checkpointing": args.checkpointing, "report_to": [],
        },
        "backend": {"name": "local", "device": "cpu"},
        "output_dir": str(folder / name),
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def mft(*arguments: object) -> float:
    """Run a command; returns its largest resident memory in GiB."""
    process = subprocess.Popen([sys.executable, "-m", "mftcoder", *map(str, arguments)], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mft {arguments[0]} ended with status {status}")
    return usage.ru_maxrss / 2**20


def losses(config_path: Path, module: Any) -> list[float]:
    """Mean validation loss of each task."""
    config = load_config(config_path)
    loader = ValidationLoader(prepare(config), config, rank=0, world_size=1)
    model = LanguageModel(module, attn_implementation=ATTENTION, num_tasks=len(config.tasks))
    return validate(model, loader, loader.counts, LocalBackend(config.backend)).losses.mean.tolist()


def measure(args: argparse.Namespace, folder: Path, quantization: str | None) -> dict[str, Any]:
    """Train one variant, export it, and compare the export with what was trained."""
    config = write_config(args, folder, quantization)
    run, out = folder / (quantization or "lora"), folder / f"{quantization or 'lora'}-merged"
    mft("prepare", config)
    peak = mft("train", config)
    mft("export", run, out, "--checkpoint", "latest")
    held = folder / f"{quantization}-held"
    if quantization:
        mft("export", run, held, "--checkpoint", "latest", "--as-trained")
    validation = json.loads((run / "summary.json").read_text())["validation"]
    source = open_run(run, "latest")
    loaded = source.load(device="cpu", dtype=torch.bfloat16, as_trained=quantization is not None)
    trained = losses(config, set_segments(loaded))
    merged = losses(config, load_folder(out, dtype=torch.bfloat16, device="cpu", attn_implementation=ATTENTION))
    as_held = (
        losses(config, load_folder(held, dtype=torch.bfloat16, device="cpu", attn_implementation=ATTENTION))
        if quantization
        else merged
    )
    return {
        "variant": quantization or "lora", "peak_gib": peak, "before": validation["first"], "after": validation["last"],
        "trained": float(np.mean(trained)), "merged": float(np.mean(merged)), "as_held": float(np.mean(as_held)),
    }  # fmt: skip


def set_segments(module: Any) -> Any:
    """The attention of packed rows, also below an adapter."""
    (module.get_base_model() if hasattr(module, "get_base_model") else module).set_attn_implementation(ATTENTION)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2, help="of a step, one at a time")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--max-samples", type=int, default=200, help="of each task")
    parser.add_argument("--val-samples", type=int, default=4, help="of each task")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--variants", default="lora,4bit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    attention.register()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for variant in args.variants.split(","):
            found.append(row := measure(args, Path(temporary), None if variant == "lora" else variant))
            tasks = "  ".join(f"{name} {row['before'][name]:.3f} -> {row['after'][name]:.3f}" for name in row["before"])
            change, held = (row[name] / row["trained"] - 1 for name in ("merged", "as_held"))
            print(
                f"{variant:5} peak {row['peak_gib']:.2f} GiB  {tasks}  adapter {row['trained']:.4f} merged {row['merged']:.4f} ({change:+.2%}), into the base as held {row['as_held']:.4f} ({held:+.2%})",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
