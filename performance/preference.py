"""How fast a DPO step is, beside TRL's DPOTrainer: the same model, LoRA weights, pairs, precision and threads.

    OMP_NUM_THREADS=1 python performance/preference.py runs/mixed/one_pair_a_question.jsonl
    OMP_NUM_THREADS=1 python performance/preference.py PAIRS --model MODEL --steps 6 --batch 16

Goes in: a file of pairs (`chosen` and `rejected` chats; performance/mixed_run.py makes one) and SmolLM2-135M-Instruct unless --model names another
one. Comes out: pairs a CPU second of both, the median over the steps after the first one; CPU seconds, because another process may take part of
the machine. Give one thread (OMP_NUM_THREADS=1): waiting threads would count. A step of TRL holds --batch pairs, padded to the longest text;
ours holds the rows that --batch pairs fill on average. TRL runs as it is by default (the reference in every step), and with the reference
computed in advance, as ours is; that is not timed for either. The ratio is to the faster of the two.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder.app.training.train import train
from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import prepare
from mftcoder.data.rendering.tokenization import IGNORED
from mftcoder.jsonl import read_jsonl, write_jsonl
from mftcoder.models.conversion.demo_model import smollm2_folder

ROLES = {"human": "user", "bot": "assistant", "system": "system"}
RANK, ALPHA, BETA, RATE = 16, 32, 0.1, 5e-5


def config_of(args: argparse.Namespace, folder: Path, rows: int) -> RunConfig:
    """Our run: packed rows, LoRA on all linear layers."""
    raw = {
        "model": {"model_name_or_path": str(args.model), "dtype": args.dtype},
        "adapter": {"lora_rank": RANK, "lora_alpha": ALPHA},
        "tasks": {"pairs": {"path": str(args.pairs), "kind": {"name": "dpo", "beta": BETA}}},
        "data": {"max_length": args.max_length, "val_size": 0, "on_error": "skip", "over_length": "drop", "num_proc": 1},
        "train": {
            "max_steps": args.steps + 1, "per_device_train_batch_size": rows, "learning_rate": RATE, "report_to": [],
            "eval_strategy": "no", "save_strategy": "no", "resume_from_checkpoint": False,
        },
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    return parse_config(raw, origin="performance/preference.py")


def second_prompts(samples: TaskSamples) -> float:
    """The share of all positions that are the prompt of a pair's second text: what running a prompt once would leave out."""
    saved = 0
    for index in range(len(samples)):
        sample = samples.sample(index)
        saved += int(np.flatnonzero(sample.targets[sample.second :] != IGNORED)[0])
    return saved / int(samples.lengths.sum())


def ours(args: argparse.Namespace, folder: Path) -> tuple[float, str]:
    """Pairs a CPU second of our steps, and what a row holds."""
    store = prepare(config_of(args, folder, 1))
    loader = TrainLoader(store, config_of(args, folder, 1))
    pairs_of_row = len(store.train(0)) / loader.steps_per_epoch
    rows = max(1, round(args.batch / pairs_of_row))
    config = config_of(args, folder, rows)
    loader = TrainLoader(store, config)
    pairs = [int(loader.step(number).counts.samples[0]) for number in range(args.steps + 1)]
    ends: list[float] = []
    train(config, on_step=lambda _: ends.append(time.process_time()))
    speeds = [count / (end - begin) for count, begin, end in zip(pairs[1:], ends, ends[1:], strict=False)]
    about = f"{rows} rows of {args.max_length} positions, {pairs_of_row:.1f} pairs in a row"
    return statistics.median(
        speeds
    ), f"{about}; {second_prompts(store.train(0)):.0%} of the positions are prompts of second texts"


def first_pairs(args: argparse.Namespace, folder: Path) -> Path:
    """A file with as many pairs as TRL's steps take: both train on the same ones."""
    path = folder / "pairs.jsonl"
    write_jsonl(path, itertools.islice((record for _, record in read_jsonl(args.pairs)), args.batch * (args.steps + 1)))
    return path


def chats(path: Path) -> list[dict[str, Any]]:
    """The pairs in TRL's conversational form."""
    found = []
    for _, record in read_jsonl(path):
        sides = {name: [{"role": ROLES.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in record[name]]
                 for name in ("chosen", "rejected")}  # fmt: skip
        found.append(sides)
    return found


def trl(args: argparse.Namespace, folder: Path, *, in_advance: bool) -> float:
    """Pairs a CPU second of TRL's steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.begin)

    clock = Clock()
    settings = DPOConfig(
        output_dir=str(folder / f"trl-{in_advance}"), per_device_train_batch_size=args.batch, max_steps=args.steps + 1,
        beta=BETA, learning_rate=RATE, max_length=args.max_length, precompute_ref_log_probs=in_advance, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)),
        args=settings,
        train_dataset=Dataset.from_list(chats(args.pairs)),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    ).train()
    return statistics.median(args.batch / seconds for seconds in clock.seconds[1:])


def main() -> int:
    """Time both, print."""
    parser = argparse.ArgumentParser(description="A DPO step beside TRL's.")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args.model = args.model or smollm2_folder(lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.pairs = first_pairs(args, folder)
        speed, rows = ours(args, folder)
        plain, advanced = trl(args, folder, in_advance=False), trl(args, folder, in_advance=True)
    print(
        f"{args.model.name}, {args.dtype}, {torch.get_num_threads()} threads, {args.batch} pairs in a step; ours: {rows}"
    )
    print("| | pairs a CPU second | ours is faster by |\n|---|---|---|")
    print(f"| mftcoder | {speed:.2f} | |")
    print(f"| TRL, the reference in every step (default) | {plain:.2f} | {speed / plain:.2f} |")
    print(f"| TRL, the reference in advance | {advanced:.2f} | {speed / advanced:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
