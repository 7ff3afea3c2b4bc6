"""Continued pretraining on Python's standard library, with fill-in-the-middle: held-out loss, and lines written exactly, before and after.

    python performance/continued_pretraining.py --out runs/stdlib
    python performance/continued_pretraining.py --out runs/stdlib --steps 200 --lines 300

Goes in: Python's standard library, and SmolLM2-135M-Instruct unless --model names another one. SmolLM2's vocabulary has no tokens for
fill-in-the-middle, so three tokens that its chats do not use (IN_PLACE) get their names; the weights stay as they are. A document is some
functions and classes of one module that follow each other. Modules are held out, not documents.
Comes out: a table. The loss is that of held-out documents as they stand in their files, every token. A line is right if the greedy answer
equals it but for whitespace around it; it is asked for with the text before it and after it (PSM), and with the text before it alone.
"""

import argparse
import ast
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from in_word import completed

from mftcoder.config.load import load_config
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.store import prepare
from mftcoder.data.rendering.fill_in_the_middle import find_format, render_fill
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Request
from mftcoder.jsonl import write_json, write_jsonl
from mftcoder.kernels import attention
from mftcoder.models.conversion.demo_model import smollm2_folder
from mftcoder.models.export.source import find_source, open_run
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.step import validate

IN_PLACE = {"<issue_start>": "<fim_prefix>", "<issue_closed>": "<fim_suffix>", "<issue_comment>": "<fim_middle>"}
DOCUMENT_CHARACTERS = 800
SHORTEST_LINE = 8  # characters
LINE_TOKENS = 40


def with_fim_tokens(model: Path, out: Path) -> Path:
    """A folder with the model's own weights, and its tokenizer with three tokens renamed."""
    out.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        target = out / file.name
        if target.exists() or not file.is_file():
            continue
        if file.suffix == ".json":
            text = file.read_text(encoding="utf-8")
            for old, new in IN_PLACE.items():
                text = text.replace(f'"{old}"', f'"{new}"')
            target.write_text(text, encoding="utf-8")
        else:
            target.symlink_to(file.resolve())
    return out


def documents(module: str) -> Iterator[str]:
    """The top-level statements of a module, in groups of at most DOCUMENT_CHARACTERS; longer ones are left out."""
    lines, text = module.splitlines(keepends=True), ""
    for node in ast.parse(module).body:
        piece = "".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
        if len(text) + len(piece) > DOCUMENT_CHARACTERS:
            if len(text) > DOCUMENT_CHARACTERS // 4:
                yield text
            text = ""
        if len(piece) <= DOCUMENT_CHARACTERS:
            text += piece


def make_data(out: Path, draw: random.Random, most: int, validated: int) -> tuple[list[str], list[str]]:
    """Documents to train on, and those of a tenth of the modules, of which `validated` are in valid.jsonl."""
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings"}
    modules = [file for file in sorted(library.rglob("*.py")) if not skipped & set(file.parts)]
    draw.shuffle(modules)
    held_out = modules[: len(modules) // 10]
    found = []
    for files, limit in ((held_out, most), (modules[len(held_out) :], most)):
        texts = [text for file in files for text in documents(file.read_text(encoding="utf-8", errors="replace"))]
        found.append(draw.sample(texts, min(limit, len(texts))))
    for name, chosen in (("valid", found[0][:validated]), ("train", found[1])):
        write_jsonl(out / f"{name}.jsonl", ({"text": text} for text in chosen))
    return found[1], found[0]


def write_config(args: argparse.Namespace, model: Path) -> Path:
    """The run's config: WSD, half of the documents rearranged."""
    config = {
        "model": {"model_name_or_path": str(model), "dtype": args.dtype},
        "adapter": {"lora_rank": 32, "lora_alpha": 64},
        "tasks": {"stdlib": {
            "path": str(args.out / "train.jsonl"), "validation": str(args.out / "valid.jsonl"),
            "kind": {"name": "pretrain", "fim_rate": 0.5},
        }},
        "data": {"max_length": 512, "num_proc": 1, "cache_dir": str(args.out / "cache")},
        "train": {
            "max_steps": args.steps, "per_device_train_batch_size": 2, "learning_rate": args.learning_rate,
            "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 0.05, "decay_steps": 0.3,
            "eval_strategy": "no", "save_steps": args.steps, "report_to": [],
        },
        "backend": {"device": "cpu"},
        "output_dir": str(args.out / "run"),
    }  # fmt: skip
    path = args.out / "config.json"
    write_json(path, config)
    return path


@dataclass(frozen=True)
class Gap:
    """A line of a held-out document, with the text before it and after it."""

    before: str
    line: str
    after: str


def gaps(texts: list[str], count: int, draw: random.Random) -> list[Gap]:
    """`count` lines of code with at least three lines before them, one of a document at most."""
    found = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        fitting = [
            at for at, line in enumerate(lines) if at >= 3 and len(line.strip()) >= SHORTEST_LINE and line.strip()[0] not in "#\"'"
        ]  # fmt: skip
        if fitting:
            at = draw.choice(fitting)
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            found.append(Gap("".join(lines[:at]) + indent, lines[at].strip(), "\n" + "".join(lines[at + 1 :])))
    return found[:count]


def right_lines(model: Any, tokenizer: Tokenizer, asked: list[Gap], *, filling: bool) -> int:
    """How many lines the model writes exactly."""
    form = find_format(tokenizer)
    assert form is not None
    requests = []
    for gap in asked:
        prompt = render_fill(form, tokenizer, gap.before, gap.after)
        ids = [*prompt.before, *prompt.prefix, *prompt.after] if filling else tokenizer.encode(gap.before)
        ends = frozenset({tokenizer.eos_id})
        requests.append(Request(ids, Sampling(LINE_TOKENS), ends, stop=("\n",), whole=True))
    texts = (text for _, text in completed(model, tokenizer, requests, 16))
    return sum(text.strip() == gap.line for text, gap in zip(texts, asked, strict=True))


def held_out_loss(config: Path, module: Any) -> float:
    """Mean loss over all tokens of the held-out documents, none of them rearranged."""
    run = load_config(config, ["tasks.stdlib.kind.fim_rate=0", "train.per_device_eval_batch_size=4"])
    attention.register()
    model = LanguageModel(module, attn_implementation="segments", num_tasks=1)
    model.set_attention("segments")
    loader = ValidationLoader(prepare(run), run)
    found = validate(model, loader, loader.counts, LocalBackend(run.backend)).losses
    return float(found.loss_sum[0] / found.tokens[0])


def main() -> int:
    """Make the data, train, ask for lines, print."""
    parser = argparse.ArgumentParser(description="Continued pretraining on the standard library.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--validated", type=int, default=40, help="held-out documents for the loss")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    model = with_fim_tokens(args.model or smollm2_folder(lambda line: print(line, file=sys.stderr)), args.out / "model")
    draw = random.Random(0)
    train, held_out = make_data(args.out, draw, args.documents, args.validated)
    asked = gaps(held_out, args.lines, draw)
    config = write_config(args, model)
    started = time.perf_counter()
    if not (args.out / "run" / "summary.json").exists():
        subprocess.run([sys.executable, "-m", "mftcoder", "train", str(config)], stdout=sys.stderr, check=True)
    seconds, tokenizer = time.perf_counter() - started, load_tokenizer(str(model))
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[args.dtype]
    rows = {}
    for name, source in (("before", find_source(str(model))), ("after", open_run(args.out / "run", "latest"))):
        module = source.load(device="cpu", dtype=dtype).eval()
        filled, continued = (right_lines(module, tokenizer, asked, filling=filling) for filling in (True, False))
        rows[name] = (
            f"{held_out_loss(config, module):.4f}",
            f"{filled} of {len(asked)}",
            f"{continued} of {len(asked)}",
        )
    print(
        f"{len(train):,} documents to train on, {args.validated} of other modules for the loss; {args.steps} steps of 1,024 positions in {seconds:.0f} s, {args.dtype}"
    )
    print("| | before | after |\n|---|---|---|")
    for at, what in enumerate(
        ("loss of held-out documents", "lines right, from the text before and after", "from the text before")
    ):
        print(f"| {what} | {rows['before'][at]} | {rows['after'][at]} |")
    return 0 if float(rows["after"][0]) < float(rows["before"][0]) else 1


if __name__ == "__main__":
    sys.exit(main())
