"""Training speed on a CPU: real tokens/s of `mft train` beside transformers' Trainer (padded) and TRL's SFTTrainer (packed).

    python performance/train_cpu.py --data ../shared/data/training
    python performance/train_cpu.py --data my/tasks --model my/model --steps 12 --threads 2
    python performance/train_cpu.py --data my/tasks --contestants mft,mft-peft-forward --rounds 5

The same model, samples (tokenised once, by our store), LoRA adapter, threads and tokens a step for all; each runs in a process of
its own and is timed over its steps after the first two. Real tokens are those of samples: padding does not count. `mft train` is
there twice: with its own function for LoRA layers, and with peft's forward. TRL has to be installed (extra `bench`).

A machine's speed drifts, so that the place in the order can matter more than the code. All contestants therefore run once in each
round, and every other round runs them in reverse. A first round warms files and caches and is not counted. Printed are the median
over the rounds, the slowest and the fastest, and how many times as fast the first contestant was in the same round (median, and range).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP = 2
OURS, PEFT_FORWARD = "mft", "mft-peft-forward"
ROWS_OF_PADDED = 8  # what people type; sorted by nothing, padded to the longest of the batch


def config_of(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Our run config; the peers read their samples from its store."""
    tasks = {path.name: str(path) for path in sorted(args.data.iterdir()) if path.is_dir()}
    tasks = {name: {"path": path, "files": []} for name, path in tasks.items()}
    for name, task in tasks.items():
        train = sorted((args.data / name).glob("train*.jsonl*"))
        if train:
            task.update(path=None, files=[str(file) for file in train])
    return {
        "model": {"model_name_or_path": str(args.model), "dtype": "bfloat16"},
        "adapter": {"type": "lora", "lora_rank": 16, "lora_alpha": 32},
        "tasks": tasks,
        "data": {"max_length": args.max_length, "val_size": 0},
        "train": {
            "max_steps": args.steps, "per_device_train_batch_size": args.rows, "eval_strategy": "no", "save_strategy": "no",
            "report_to": [], "learning_rate": 1e-4,
        },
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }  # fmt: skip


def ours(name: str, config_path: Path) -> float:
    """Real tokens/s of `mft train`, from its own metrics.jsonl."""
    run = Path(tempfile.mkdtemp(prefix=name, dir=config_path.parent))
    overrides = [f"output_dir={run}", f"adapter.peft_forward={'true' if name == PEFT_FORWARD else 'false'}"]
    command = [sys.executable, "-m", "mftcoder", "train", str(config_path), *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"][WARMUP:]
    tokens = sum(record["tokens_per_second"] * record["seconds"] for record in steps)
    return tokens / sum(record["seconds"] for record in steps)


def samples_of(config_path: Path, count: int) -> list[dict[str, Any]]:
    """`count` samples in our mixture's order, as Hugging Face records with labels that are not yet shifted."""
    import numpy as np

    from mftcoder.config.load import load_config
    from mftcoder.data.prepared.store import prepare

    config = load_config(config_path)
    store = prepare(config)
    everything = [(task, i) for task in range(len(store.tasks)) for i in range(len(store.train(task)))]
    chosen = np.random.default_rng(0).permutation(len(everything))[:count]
    records = []
    for task, index in (everything[i] for i in chosen):
        sample = store.train(task).sample(index)
        last = int(sample.targets[-1])
        ids = [*sample.input_ids.tolist(), last if last != -100 else int(sample.input_ids[-1])]
        records.append({"input_ids": ids, "labels": [-100, *sample.targets.tolist()]})
    return records


def peer(name: str, config_path: Path, args: argparse.Namespace) -> float:
    """Real tokens/s of a peer's trainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Clock(TrainerCallback):
        """Notes when each step ended and how many real tokens had gone in by then."""

        def __init__(self) -> None:
            self.marks: list[tuple[float, int]] = []
            self.tokens = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append((time.perf_counter(), self.tokens))

    clock = Clock()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "max_steps": args.steps, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "learning_rate": 1e-4, "bf16": True, "disable_tqdm": True,
    }  # fmt: skip
    records = samples_of(config_path, args.steps * max(ROWS_OF_PADDED, args.rows * 16))
    dataset = Dataset.from_list(records)
    if name == "trainer":
        arguments = TrainingArguments(
            per_device_train_batch_size=ROWS_OF_PADDED, gradient_checkpointing=False, **common
        )
        collator: Any = _counting(DataCollatorForSeq2Seq(tokenizer), clock)
        trainer: Any = Trainer(
            get_peft_model(model, lora), arguments, data_collator=collator, train_dataset=dataset, callbacks=[clock]
        )
    else:
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(
            per_device_train_batch_size=args.rows, packing=True, max_length=args.max_length, gradient_checkpointing=False,
            **common,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=lora, callbacks=[clock]
        )
        trainer.data_collator = _counting(trainer.data_collator, clock)
    trainer.train()
    (started, before), (ended, after) = clock.marks[WARMUP - 1], clock.marks[-1]
    return (after - before) / (ended - started)


def _counting(collator: Any, clock: Any) -> Any:
    """The collator, with the real tokens of every batch noted."""

    def collate(features: list[dict[str, Any]]) -> Any:
        clock.tokens += sum(len(feature["input_ids"]) for feature in features)
        return collator(features)

    return collate


def run_apart(name: str, args: argparse.Namespace, config_path: Path) -> tuple[float, float]:
    """`(real tokens/s, peak GiB)` of one contestant in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--contestant", name, "--config", str(config_path), *sys.argv[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    speed, peak = done.stdout.strip().splitlines()[-1].split()
    return float(speed), float(peak)


def all_rounds(
    names: list[str], args: argparse.Namespace, config_path: Path
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Real tokens/s of each contestant in each counted round, and its largest peak in GiB."""
    speeds: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0.0)
    for number in range(args.rounds + 1):
        for name in names if number % 2 else reversed(names):
            speed, peak = run_apart(name, args, config_path)
            peaks[name] = max(peaks[name], peak)
            speeds[name] += [speed] if number else []
            print(f"round {number or 'of warm-up'}: {name} {speed:,.0f}", file=sys.stderr, flush=True)
    return speeds, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of task folders")
    parser.add_argument("--model", type=Path, help="model folder; default SmolLM2-135M-Instruct, fetched once")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="after the one of warm-up")
    parser.add_argument(
        "--contestants", default=f"{OURS},{PEFT_FORWARD},trainer,trl", help="the first is compared with the others"
    )
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model is None:
        from mftcoder.models.conversion.demo_model import smollm2_folder

        args.model = smollm2_folder()
        sys.argv += ["--model", str(args.model)]
    if args.contestant:
        is_ours = args.contestant in (OURS, PEFT_FORWARD)
        speed = ours(args.contestant, args.config) if is_ours else peer(args.contestant, args.config, args)
        who = resource.RUSAGE_CHILDREN if is_ours else resource.RUSAGE_SELF
        print(speed, resource.getrusage(who).ru_maxrss / 2**20)
        return
    with tempfile.TemporaryDirectory() as folder:
        config_path = Path(folder) / "config.json"
        config_path.write_text(json.dumps(config_of(args, Path(folder))))
        labels = {
            OURS: "mft train, packed best-fit",
            PEFT_FORWARD: "mft train, with peft's forward",
            "trainer": f"transformers Trainer, padded, {ROWS_OF_PADDED} a step",
            "trl": "TRL SFTTrainer, packed",
        }
        names = args.contestants.split(",")
        speeds, peaks = all_rounds(names, args, config_path)
        print(
            f"{args.model.name}, LoRA, {args.threads} threads, {args.rows} rows of {args.max_length} a step, {args.rounds} rounds"
        )
        print(f"{'real tokens/s':38}{'median':>8}{'range':>16}{'peak GiB':>10}{'times':>7}{'range':>13}")
        for name in names:
            found, times = (
                speeds[name],
                [ours / theirs for ours, theirs in zip(speeds[names[0]], speeds[name], strict=True)],
            )
            print(
                f"{labels[name]:38}{statistics.median(found):8,.0f}{f'{min(found):,.0f}-{max(found):,.0f}':>16}{peaks[name]:10.2f}"
                f"{statistics.median(times):7.2f}{f'{min(times):.2f}-{max(times):.2f}':>13}"
            )


if __name__ == "__main__":
    main()
