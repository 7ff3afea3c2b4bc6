"""What fp8 does to the loss: the same run with products in bfloat16 and in fp8; LoRA over each kind of base, and full fine-tuning.

    python performance/fp8_loss.py --data ../shared/data/training
    python performance/fp8_loss.py --data my/tasks --model my/model --steps 200 --device cuda --json out.json
    python performance/fp8_loss.py --data my/tasks --variants full,full-tensorwise,full-rowwise     # needs torchao

Each variant is `mft train` in a process of its own: the same samples in the same order, the same new weights, the same seed.
Where the device has no products in fp8 they are emulated to the same numbers. Printed are the mean validation loss over tasks
before and after, how far the latter is from that of the first variant of the same kind, and the largest distance of their training
losses, both as means of 20 steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LORA, FULL = {"type": "lora", "lora_rank": 16}, {"type": "full"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": LORA},
    **{f"lora-{held}": {"adapter": LORA, "model": {"quantization": held}} for held in ("fp8", "4bit", "4bit-fp8")},
    "full": {"adapter": FULL},
    **{f"full-{recipe}": {"adapter": FULL, "train": {"fp8_recipe": recipe}} for recipe in ("tensorwise", "rowwise")},
}
LEARNING_RATES = {"lora": 5e-4, "full": 5e-5}
WINDOW = 20  # steps that are averaged before curves are compared


def write_config(args: argparse.Namespace, folder: Path, variant: str) -> Path:
    """The run's config: rows of every task alike, all linear layers adapted or all weights trained."""
    chosen = VARIANTS[variant]
    tasks = {}
    for path in sorted(path for path in args.data.iterdir() if path.is_dir()):
        files = sorted(str(file) for file in path.glob("train*.jsonl*"))
        if files:
            tasks[path.name] = {"files": files, "max_samples": args.max_samples}
    config = {
        "model": {"model_name_or_path": str(args.model), **chosen.get("model", {})},
        "adapter": chosen["adapter"],
        "tasks": tasks,
        "data": {"max_length": args.max_length, "max_val_samples": args.val_samples, "sampling": "uniform"},
        "train": {
            "max_steps": args.steps, "per_device_train_batch_size": args.rows, "warmup_steps": 10, "eval_steps": args.steps,
            "learning_rate": LEARNING_RATES[chosen["adapter"]["type"]], "save_strategy": "no", "report_to": [],
            "torch_compile": args.device == "cuda", **chosen.get("train", {}),
        },
        "backend": {"name": "local", "device": args.device},
        "output_dir": str(folder / variant),
    }  # fmt: skip
    path = folder / f"{variant}.json"
    path.write_text(json.dumps(config))
    return path


def measure(args: argparse.Namespace, folder: Path, variant: str) -> dict[str, Any]:
    """Train one variant; its validation losses and its training loss step by step."""
    config = write_config(args, folder, variant)
    subprocess.run([sys.executable, "-m", "mftcoder", "train", str(config)], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (folder / variant / "metrics.jsonl").read_text().splitlines()]
    validation = json.loads((folder / variant / "summary.json").read_text())["validation"]
    return {
        "variant": variant,
        "before": float(np.mean(list(validation["first"].values()))),
        "after": float(np.mean(list(validation["last"].values()))),
        "curve": [line["loss"] for line in lines if line["kind"] == "train"],
    }


def gap(curve: list[float], reference: list[float]) -> float:
    """The largest relative distance of two curves, each smoothed over WINDOW steps."""
    window = np.ones(min(WINDOW, len(curve))) / min(WINDOW, len(curve))
    ours, theirs = (np.convolve(values, window, mode="valid") for values in (curve, reference))
    return float(np.max(np.abs(ours - theirs) / theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of task folders")
    parser.add_argument("--model", type=Path, help="model folder; default SmolLM2-135M-Instruct, fetched once")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1, help="packed rows of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-samples", type=int, default=400, help="of each task")
    parser.add_argument("--val-samples", type=int, default=8, help="of each task")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--variants", default="lora,lora-fp8,lora-4bit,lora-4bit-fp8")
    parser.add_argument("--json", type=Path, help="write curves and table there as well")
    args = parser.parse_args()
    if args.model is None:
        from mftcoder.models.conversion.demo_model import smollm2_folder

        args.model = smollm2_folder(lambda line: print(line, file=sys.stderr))
    print(f"{args.model.name}, {args.steps} steps of {args.rows} x {args.max_length}, {args.device}")
    print(f"{'':18}{'before':>9}{'after':>9}{'after, to first':>17}{'curve, to first':>17}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for variant in args.variants.split(","):
            rows.append(row := measure(args, Path(temporary), variant))
            first = next(other for other in rows if other["variant"].partition("-")[0] == variant.partition("-")[0])
            change, distance = row["after"] / first["after"] - 1, gap(row["curve"], first["curve"])
            print(f"{variant:18}{row['before']:9.4f}{row['after']:9.4f}{change:17.2%}{distance:17.2%}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
