"""Tokenise and pack JSONL: `mft prepare` beside datasets.map and beside the message-by-message loop of earlier trainers.

    python performance/prepare.py                          200 MB made of the Python sources installed here, a 16k BPE trained on them
    python performance/prepare.py --data DIR --tokenizer DIR --processes 8

Each contender runs in a process of its own, one after the other. Seconds are wall time from the first byte read to the last row planned,
imports left out; CPU seconds are those of all its processes and say more on a busy machine; memory is the largest sum of
proportional set sizes (PSS) over the process and its children. Needs the extra `bench`.

All three write the same ChatML text. The loop gets a share of the data; datasets.map makes neither labels nor rows; only ours
splits, counts and goes on after a kill.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROW_LENGTH = 4096
CONTENDERS = ("mft prepare", "datasets.map", "message by message")


def main() -> None:
    """Make what is missing, run the contenders, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder of .jsonl files in chat_rounds form; default made from Python sources"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer; default a BPE trained on the data")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the data made")
    parser.add_argument("--vocab-size", type=int, default=16_000, help="size of the vocabulary trained")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="for mft prepare and datasets.map")
    parser.add_argument("--loop-share", type=float, default=0.1, help="share of the data that the slow loop gets")
    parser.add_argument("--work", type=Path, help="keep data and tokenizer in this folder for the next time")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        result = RUNNERS[arguments.run](arguments)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments, arguments.work or Path(temporary))


def compare(arguments: argparse.Namespace, work: Path) -> None:
    """Run all contenders on the same data and print one line each."""
    arguments.data = arguments.data or make_data(work / "data", arguments.megabytes)
    arguments.tokenizer = arguments.tokenizer or make_tokenizer(
        work / "tokenizer", arguments.data, arguments.vocab_size
    )
    size = sum(path.stat().st_size for path in arguments.data.glob("*.jsonl"))
    print(
        f"{size / 1e6:,.0f} MB, rows of {ROW_LENGTH}, {arguments.processes} processes, load {os.getloadavg()[0]:.1f} before the start\n"
    )
    titles = ("M tokens", "seconds", "CPU s", "tokens/s", "per CPU s", "row fill", "peak MB", "ours is", "by CPU")
    print(" " * 20 + "".join(f"{title:>11}" for title in titles))
    ours: list[float] = []
    for contender in CONTENDERS:
        result = measure(contender, arguments)
        rates = [result["tokens"] / result[clock] for clock in ("seconds", "cpu")]
        ours = ours or rates
        cells = (
            f"{result['tokens'] / 1e6:.1f}",
            f"{result['seconds']:.1f}",
            f"{result['cpu']:.1f}",
            *(f"{rate:,.0f}" for rate in rates),
            f"{100 * result['fill']:.1f}%" if result["fill"] else "-",
            f"{result['peak'] / 1e6:,.0f}",
            *(f"{own / rate:.1f}x" for own, rate in zip(ours, rates, strict=True)),
        )
        print(f"{contender:20}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def measure(contender: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One contender in a fresh process and a fresh cache; its own figures and the peak memory of its process tree."""
    options = ["--run", contender, "--data", str(arguments.data), "--tokenizer", str(arguments.tokenizer)]
    options += ["--processes", str(arguments.processes), "--loop-share", str(arguments.loop_share)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MFTCODER_CACHE": cache, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, __file__, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.2)
        out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{contender} failed:\n{err}")
    return {**json.loads(out.splitlines()[-1]), "peak": peak}


def tree_memory(pid: int) -> int:
    """Bytes held by a process and its descendants, shared pages counted once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        pass  # a process ended while it was looked at; the next look counts again
    return total


class Clock:
    """Seconds and CPU seconds (of this process and its finished children) since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), sum(os.times()[:4])

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu": sum(os.times()[:4]) - self.cpu}


def run_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """The store and the packing plan of a config."""
    from mftcoder.config.schema import RunConfig
    from mftcoder.data.batches.packing import pack_best_fit
    from mftcoder.data.prepared.store import prepare

    config = RunConfig.model_validate({
        "model": str(arguments.tokenizer),
        "tasks": {"bench": str(arguments.data)},
        "data": {"max_length": ROW_LENGTH, "num_proc": arguments.processes, "val_size": 0, "chat_template": "chatml", "over_length": "split"},
        "output_dir": "unused",
    })  # fmt: skip
    clock = Clock()
    lengths = prepare(config).train(0).lengths
    plan = pack_best_fit(lengths, ROW_LENGTH)
    return clock.read() | {"tokens": int(lengths.sum()), "fill": plan.fill(lengths, ROW_LENGTH)}


def chatml(rounds: list[dict[str, str]]) -> str:
    """The text that all contenders tokenise."""
    names = {"human": "user", "bot": "assistant"}
    return "".join(f"<|im_start|>{names[turn['role']]}\n{turn['content']}<|im_end|>\n" for turn in rounds)


def run_datasets(arguments: argparse.Namespace) -> dict[str, float]:
    """The usual way: load_dataset, then a batched map with the transformers tokenizer. Packing is left out, in its favour."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [chatml(rounds) for rounds in batch["chat_rounds"]]
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    files = sorted(map(str, arguments.data.glob("*.jsonl")))
    clock = Clock()
    raw = datasets.load_dataset("json", data_files=files, split="train", num_proc=min(arguments.processes, len(files)))
    done = raw.map(tokenize, batched=True, num_proc=arguments.processes, remove_columns=raw.column_names)
    return clock.read() | {"tokens": sum(len(ids) for ids in done["input_ids"]), "fill": 0.0}


def run_loop(arguments: argparse.Namespace) -> dict[str, float]:
    """One process, one tokenizer call a message, rows and labels filled in the order of the samples (next fit)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    budget = arguments.loop_share * sum(path.stat().st_size for path in arguments.data.glob("*.jsonl"))
    clock = Clock()
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    tokens = 0
    ids: list[int] = []
    labels: list[int] = []
    for line in read_lines(arguments.data, budget):
        sample: list[int] = []
        sample_labels: list[int] = []
        for turn in json.loads(line)["chat_rounds"]:
            turn_ids = tokenizer.encode(chatml([turn]), add_special_tokens=False)
            sample += turn_ids
            sample_labels += turn_ids if turn["role"] == "bot" else [-100] * len(turn_ids)
        if len(ids) + len(sample) > ROW_LENGTH:
            rows.append(padded(ids, labels))
            ids, labels = [], []
        ids, labels = ids + sample[:ROW_LENGTH], labels + sample_labels[:ROW_LENGTH]
        tokens += min(len(sample), ROW_LENGTH)
    rows.append(padded(ids, labels))
    return clock.read() | {"tokens": tokens, "fill": tokens / (len(rows) * ROW_LENGTH)}


def padded(ids: list[int], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One row, filled up."""
    missing = ROW_LENGTH - len(ids)
    return np.array(ids + [0] * missing, np.int32), np.array(labels + [-100] * missing, np.int32)


def read_lines(folder: Path, budget: float) -> Iterator[bytes]:
    """Lines of the folder's files until `budget` bytes are read."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if budget <= 0:
                    return
                budget -= len(line)
                yield line


RUNNERS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = dict(
    zip(CONTENDERS, (run_ours, run_datasets, run_loop), strict=True)
)


def make_data(folder: Path, megabytes: int) -> Path:
    """Chats cut from the Python files installed here: the start of a piece is the question, the rest the answer."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    print(f"making {megabytes} MB of chats from installed Python sources", flush=True)
    rng, written = random.Random(0), 0
    for part in range(4):
        with (folder / f"part-{part}.jsonl").open("wb") as file:
            for record in chats(rng):
                line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
                file.write(line)
                written += len(line)
                if written >= megabytes * 1e6 * (part + 1) / 4:
                    break
    return folder


def chats(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Endless: installed sources in random order, in pieces of lognormal size around 1,200 characters."""
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    paths = sorted(path for root in roots for path in Path(root).rglob("*.py"))
    while True:
        for path in rng.sample(paths, len(paths)):
            text = path.read_text(encoding="utf-8", errors="ignore")
            start = 0
            while start < len(text):
                size = int(np.clip(rng.lognormvariate(7.1, 0.8), 80, 20_000))
                question, answer = text[start : start + size // 3], text[start + size // 3 : start + size]
                start += size
                if question.strip() and answer.strip():
                    rounds = [{"role": "human", "content": f"Go on:\n{question}"}, {"role": "bot", "content": answer}]
                    yield {"id": f"{path.name}:{start}", "chat_rounds": rounds}


def make_tokenizer(folder: Path, data: Path, vocab_size: int) -> Path:
    """A byte-level BPE trained on the first 20 MB of the data, in Hugging Face layout."""
    if folder.exists():
        return folder
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    print(f"training a tokenizer of {vocab_size:,} tokens", flush=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = (turn["content"] for line in read_lines(data, 20e6) for turn in json.loads(line)["chat_rounds"])
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


if __name__ == "__main__":
    main()
