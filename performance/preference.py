"""How fast a DPO step is, beside TRL's DPOTrainer: the same model, LoRA weights, pairs, precision and threads.

    pip install "mftcoder[bench]"
    OMP_NUM_THREADS=1 python performance/preference.py runs/mixed/one_pair_a_question.jsonl
    OMP_NUM_THREADS=1 python performance/preference.py PAIRS --model MODEL --repeats 5 --steps 2 --batch 16

Goes in: a file of pairs (`chosen` and `rejected` chats; performance/mixed_run.py makes one) and SmolLM2-135M-Instruct unless --model names another
one. Comes out: pairs a second of both, in CPU seconds and in seconds on the wall, the median over the repeats with the lowest and the highest.
CPU seconds count, because another process may take part of the machine. Give one thread (OMP_NUM_THREADS=1): waiting threads would count. In a
repeat each program makes a run of its own, one after another; its first step warms up, and the others are timed together. A step of TRL holds
--batch pairs, padded to the longest text; ours holds the rows that --batch pairs fill on average. TRL runs as it is by default (the reference in
every step), and with the reference computed in advance, as ours is; that is not timed for either. The ratio is to the median of each.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Moment:
    """A point in time on both clocks, or the time between two of them, in seconds."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> "Moment":
        """This process's CPU time, and a clock on the wall."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, before: "Moment") -> "Moment":
        """The time between the two."""
        return Moment(self.cpu - before.cpu, self.wall - before.wall)

    def speed(self, pairs: int) -> "Moment":
        """Pairs a second on both clocks."""
        return Moment(pairs / self.cpu, pairs / self.wall)


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


def rows_of_step(args: argparse.Namespace, folder: Path) -> tuple[int, str]:
    """The rows that --batch pairs fill on average, and what they hold in words."""
    store = prepare(config_of(args, folder, 1))
    pairs_of_row = len(store.train(0)) / TrainLoader(store, config_of(args, folder, 1)).steps_per_epoch
    rows = max(1, round(args.batch / pairs_of_row))
    about = f"{rows} rows of {args.max_length} positions, {pairs_of_row:.1f} pairs in a row"
    return rows, f"{about}; {second_prompts(store.train(0)):.0%} of the positions are prompts of second texts"


def ours(args: argparse.Namespace, folder: Path, rows: int) -> Moment:
    """The speed of our steps after the first."""
    config = config_of(args, folder, rows)
    loader = TrainLoader(prepare(config), config)
    pairs = sum(int(loader.step(number).counts.samples[0]) for number in range(1, args.steps + 1))
    ends: list[Moment] = []
    train(config, on_step=lambda _: ends.append(Moment.now()))
    return ends[-1].since(ends[0]).speed(pairs)


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


def trl(args: argparse.Namespace, folder: Path, *, in_advance: bool) -> Moment:
    """The speed of TRL's steps after the first."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[Moment] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(Moment.now())

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
    return clock.ends[-1].since(clock.ends[0]).speed(args.steps * args.batch)


def repeated(args: argparse.Namespace, folder: Path, rows: int) -> dict[str, list[Moment]]:
    """The speeds of each program in each repeat."""
    programs: dict[str, Callable[[Path], Moment]] = {
        "mftcoder": lambda to: ours(args, to, rows),
        "TRL, the reference in every step (default)": lambda to: trl(args, to, in_advance=False),
        "TRL, the reference in advance": lambda to: trl(args, to, in_advance=True),
    }
    found: dict[str, list[Moment]] = {name: [] for name in programs}
    for number in range(args.repeats):
        for name, program in programs.items():
            found[name].append(program(folder / str(number)))
            print(
                f"repeat {number + 1} of {args.repeats}: {name}: {found[name][-1].cpu:.3f} pairs a CPU second",
                file=sys.stderr,
            )
    return found


def table(found: dict[str, list[Moment]]) -> str:
    """A row for each program; the first one is ours."""
    lines = [
        "| | pairs a CPU second | ours is faster by | pairs a second on the wall | ours is faster by |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(found.values()))
    for name, speeds in found.items():
        cells = []
        for clock in ("cpu", "wall"):
            values, own = ([getattr(one, clock) for one in of] for of in (speeds, first))
            median = statistics.median(values)
            ratio = "" if speeds is first else f"{statistics.median(own) / median:.2f}"
            cells += [f"{median:.3f} ({min(values):.3f} to {max(values):.3f})", ratio]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Time both, print."""
    parser = argparse.ArgumentParser(description="A DPO step beside TRL's.")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a repeat, after one that warms up")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args.model = args.model or smollm2_folder(lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.pairs = first_pairs(args, folder)
        rows, about = rows_of_step(args, folder)
        found = repeated(args, folder, rows)
    print(
        f"{args.model.name}, {args.dtype}, {torch.get_num_threads()} threads, {args.batch} pairs in a step, {args.steps} steps, {args.repeats} repeats; "
        f"ours: {about}"
    )
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
