"""What fp8 does to the loss: the same run with products in bfloat16 and in fp8; LoRA over each kind of base, and full fine-tuning.

    python performance/fp8_loss.py --data ../shared/data/training
    python performance/fp8_loss.py --data my/tasks --model my/model --steps 200 --device cuda --json out.json
    python performance/fp8_loss.py --data my/tasks --variants full,full-tensorwise,full-rowwise     # needs torchao
    python performance/fp8_loss.py --data my/tasks --variants lora,lora-fp8,lora-fp8+down_proj      # modules_to_not_convert
    python performance/fp8_loss.py --data my/tasks --parts                                          # where it comes from

Each variant is `mft train` in a process of its own: the same samples in the same order, the same new weights, the same seed, except
for `lora-other-seed`, which shows what chance does. Names after a `+` are model.modules_to_not_convert. Where the device has no
products in fp8 they are emulated to the same numbers. Printed are the mean validation loss over tasks before and after, the latter
also over the original base, to which `mft export` adds the LoRA weights, and of the training losses the mean over all steps, the mean
over the last quarter, and the largest distance of two means of 20 steps. Each percentage is the distance from the first variant of
the same kind.

`--parts` trains nothing: it prints the validation loss of the given model with one part of the rounding at a time, and the standard
error of each change over samples.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

LORA, FULL = {"type": "lora", "lora_rank": 16}, {"type": "full"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": LORA},
    "lora-other-seed": {"adapter": LORA, "train": {"seed": 1}},
    **{f"lora-{held}": {"adapter": LORA, "model": {"quantization": held}} for held in ("fp8", "4bit", "4bit-fp8")},
    "full": {"adapter": FULL},
    **{f"full-{recipe}": {"adapter": FULL, "train": {"fp8_recipe": recipe}} for recipe in ("tensorwise", "rowwise")},
}
LEARNING_RATES = {"lora": 5e-4, "full": 5e-5}
WINDOW = 20  # steps that are averaged before curves are compared


def write_config(args: argparse.Namespace, folder: Path, variant: str) -> Path:
    """The run's config: rows of every task alike, all linear layers adapted or all weights trained."""
    name, *kept = variant.split("+")
    chosen = VARIANTS[name]
    tasks = {}
    for path in sorted(path for path in args.data.iterdir() if path.is_dir()):
        files = sorted(str(file) for file in path.glob("train*.jsonl*"))
        if files:
            tasks[path.name] = {"files": files, "max_samples": args.max_samples}
    config = {
        "model": {
            "model_name_or_path": str(args.model), "modules_to_not_convert": kept, **chosen.get("model", {}),
        },
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
        "exported": mean_of_tasks(sample_losses(*loaded(config, args.device, folder / variant))),
        "curve": [line["loss"] for line in lines if line["kind"] == "train"],
    }


def loaded(config_path: Path, device: str, run: Path | None = None) -> tuple[Any, Any]:
    """The config's model with nothing held or multiplied in fewer bits, with the last weights of a run, and the validation rows."""
    from mftcoder.config.load import load_config
    from mftcoder.data.batches.loader import ValidationLoader
    from mftcoder.data.prepared.store import prepare
    from mftcoder.kernels import attention
    from mftcoder.models.layers.adapters import attach, restore
    from mftcoder.models.loading.load import load_model
    from mftcoder.training.forward.language_model import LanguageModel

    config = load_config(config_path, ["model.quantization=null", "train.fp8_recipe=null"])
    attention.register()
    module = load_model(config.model, attn_implementation="segments", device=device)
    if run is not None:
        module = attach(module, config.adapter)
        restore(module, run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "model")
    model = LanguageModel(module, attn_implementation="segments", num_tasks=len(config.tasks))
    return model, ValidationLoader(prepare(config), config)


PARTS: dict[str, tuple[str, bool, bool]] = {  # layers that are kept, weights rounded, inputs rounded
    "weights and inputs": ("", True, True),
    "weights": ("", True, False),
    "inputs": ("", False, True),
    "all but down_proj": ("down_proj", True, True),
    "all but layers 0-1": ("layers.0 layers.1", True, True),
    "all but layers 0-1 and down_proj": ("layers.0 layers.1 down_proj", True, True),
    "all but the MLP": ("mlp", True, True),
}


def print_parts(args: argparse.Namespace, config_path: Path) -> None:
    """The table of `--parts`."""
    model, loader = loaded(config_path, args.device)
    whole = sample_losses(model, loader)
    print(f"{args.model.name}, {len(whole)} samples, {whole[:, 2].sum():,.0f} tokens: {mean_of_tasks(whole):.4f}")
    draw = np.random.default_rng(0)
    for name, (kept, weights, inputs) in PARTS.items():
        with rounded(model.causal_lm, tuple(kept.split()), weights=weights, inputs=inputs):
            found = sample_losses(model, loader)
        picks = [resampled(whole, draw) for _ in range(500)]
        error = np.std([mean_of_tasks(found[pick]) / mean_of_tasks(whole[pick]) for pick in picks])
        print(
            f"{name:34}{mean_of_tasks(found):9.4f}{mean_of_tasks(found) / mean_of_tasks(whole) - 1:10.2%} +- {error:.2%}",
            flush=True,
        )


@contextmanager
def rounded(causal_lm: Any, kept: tuple[str, ...], *, weights: bool, inputs: bool) -> Iterator[None]:
    """Round weights and inputs of the linear layers to e4m3 as training does, except in layers with one of `kept` in their path."""
    from mftcoder.kernels.linear.fp8 import round_rows
    from mftcoder.models.layers.quantize import as_held, quantizable_layers

    def round_input(_layer: Any, given: tuple[Any, ...]) -> tuple[Any]:
        values, scales = round_rows(given[0].flatten(0, -2))
        return ((values.to(given[0].dtype) * scales.to(given[0].dtype)).view_as(given[0]),)

    layers = list(quantizable_layers(causal_lm, "fp8", kept).values())
    before = [layer.weight.data for layer in layers]
    for layer in layers if weights else []:
        layer.weight.data = as_held(layer.weight.data, "fp8", layer.weight.dtype)
    hooks = [layer.register_forward_pre_hook(round_input) for layer in layers if inputs]
    yield
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.data = weight
    for hook in hooks:
        hook.remove()


def sample_losses(model: Any, loader: Any) -> Any:
    """`[task, summed loss, trained tokens]` of each validation sample."""
    rows = []
    with model.evaluating():
        for batch in loader:
            starts = (batch.position_ids == 0).flatten()
            segments, losses = starts.cumsum(0) - 1, model.sample_losses(batch)
            tokens = np.bincount(segments.numpy(), (batch.targets != -100).flatten().numpy(), len(losses))
            rows += zip(batch.task_ids.flatten()[starts].tolist(), losses.tolist(), tokens.tolist(), strict=True)
    return np.asarray([row for row in rows if row[2]])


def mean_of_tasks(samples: Any) -> float:
    """The mean over tasks of their mean token losses."""
    tasks = np.unique(samples[:, 0])
    return float(np.mean([np.divide(*samples[samples[:, 0] == task, 1:].sum(0)) for task in tasks]))


def resampled(samples: Any, draw: np.random.Generator) -> Any:
    """As many samples of each task, drawn with replacement."""
    places = [np.flatnonzero(samples[:, 0] == task) for task in np.unique(samples[:, 0])]
    return np.concatenate([draw.choice(of_task, len(of_task)) for of_task in places])


def distances(curve: list[float], reference: list[float]) -> list[float]:
    """Relative distances of two training curves: of their means, of the means of their last quarters, and the largest of all."""
    last = len(curve) // 4 or 1
    means = (np.mean(curve) / np.mean(reference) - 1, np.mean(curve[-last:]) / np.mean(reference[-last:]) - 1)
    return [*map(float, means), gap(curve, reference)]


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
    parser.add_argument("--variants", default="lora,lora-other-seed,lora-fp8,lora-4bit,lora-4bit-fp8")
    parser.add_argument(
        "--parts", action="store_true", help="which part of the rounding costs how much, without training"
    )
    parser.add_argument("--json", type=Path, help="write curves and table there as well")
    args = parser.parse_args()
    if args.model is None:
        from mftcoder.models.conversion.demo_model import smollm2_folder

        args.model = smollm2_folder(lambda line: print(line, file=sys.stderr))
    if args.parts:
        with tempfile.TemporaryDirectory() as temporary:
            print_parts(args, write_config(args, Path(temporary), "lora"))
        return
    print(f"{args.model.name}, {args.steps} steps of {args.rows} x {args.max_length}, {args.device}")
    print(
        f"{'':18}{'before':>9}{'after':>9}{'to first':>10}{'exported':>10}{'to first':>10}{'curve: all':>12}{'last 1/4':>10}{'largest':>9}"
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for variant in args.variants.split(","):
            rows.append(row := measure(args, Path(temporary), variant))
            first = next(other for other in rows if other["variant"].partition("-")[0] == variant.partition("-")[0])
            numbers = [f"{row['before']:9.4f}"]
            for when, width in (("after", 9), ("exported", 10)):
                numbers.append(f"{row[when]:{width}.4f}{row[when] / first[when] - 1:10.2%}")
            whole, last, largest = distances(row["curve"], first["curve"])
            print(f"{variant:18}{''.join(numbers)}{whole:12.2%}{last:10.2%}{largest:9.2%}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
