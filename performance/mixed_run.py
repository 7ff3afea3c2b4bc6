"""One run with tasks of three kinds on a real model: two SFT tasks, one DPO task and one pretraining task, killed and resumed.

    python performance/mixed_run.py --data-dir ../shared/data --out runs/mixed
    python performance/mixed_run.py --data-dir ../shared/data --out runs/mixed --model MODEL --steps 20

Goes in: training data (`training/TASK/train.jsonl.gz`), MBPP (`mbpp/mbpp.jsonl.gz`), Python's standard library, and SmolLM2-135M-Instruct unless
--model names another one. The pairs come out of `mft data verify`: an MBPP solution that passes its tests, and a mutant of it that fails.
Comes out: a table with the losses of held-out samples before and after, and the rewards of held-out pairs; then whether a second run, which
got a SIGKILL and went on, ends with the same bits.
"""

import argparse
import ast
import itertools
import json
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mftcoder.curation.mining.mutations import mutations
from mftcoder.jsonl import read_json, read_jsonl, write_json, write_jsonl
from mftcoder.models.conversion.demo_model import smollm2_folder
from mftcoder.models.export.source import find_checkpoint
from mftcoder.models.layers.adapters import ADAPTER_WEIGHTS
from mftcoder.reporting.run_folder import read_run

SFT_TASKS = ("code_instructions", "java_to_csharp")
MUTANTS = 3
MODULE_CHARACTERS = range(500, 12_000)
PAIR_CHARACTERS = 1_500  # of the record: two texts of at most 512 tokens together


def mft(*arguments: object) -> None:
    """Run a command; its output goes to the standard error."""
    subprocess.run([sys.executable, "-m", "mftcoder", *map(str, arguments)], stdout=sys.stderr, check=True)


def problems(mbpp: Path) -> Iterator[dict[str, Any]]:
    """MBPP problems with a solution of one function, as records with mutants of the solution as further answers."""
    for _, row in read_jsonl(mbpp):
        code = row["code"].replace("\r\n", "\n").strip() + "\n"
        body = ast.parse(code).body
        if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
            continue
        made = itertools.islice(mutations(code, random.Random(row["task_id"])), MUTANTS)
        yield {
            "prompt": f"{row['text']}\nYour code must pass this test: {row['test_list'][0]}",
            "completion": f"```python\n{code}```",
            "wrong": [f"```python\n{one.source}```" for one in made],
            "tests": row["test_list"],
        }


def make_pairs(mbpp: Path, out: Path) -> Path:
    """Pairs of a solution that passes and a mutant that fails, as `mft data verify` finds them."""
    found, pairs = out / "pairs.jsonl", out / "one_pair_a_question.jsonl"
    if not found.exists():
        records = out / "problems.jsonl"
        write_jsonl(records, problems(mbpp))
        mft("data", "verify", records, "--samples", "wrong", "--preferences", found, "--out", out / "verified")
    by_question = {pair["chosen"][0]["content"]: pair for _, pair in reversed(list(read_jsonl(found)))}
    write_jsonl(pairs, by_question.values())  # so that no held-out pair has the question of a trained one
    return pairs


def modules(draw: random.Random) -> list[dict[str, str]]:
    """Modules of the standard library as documents."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(file for file in library.rglob("*.py") if not {"site-packages", "test", "tests"} & set(file.parts))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in found]
    fitting = [text for text in texts if len(text) in MODULE_CHARACTERS]
    return [{"text": text} for text in draw.sample(fitting, len(fitting))]


def write_tasks(args: argparse.Namespace, pairs: Path) -> dict[str, dict[str, Any]]:
    """The files of each task: records to train on, and others to validate on."""
    draw = random.Random(0)
    sources: dict[str, list[Any]] = {"stdlib": modules(draw)}
    for name in SFT_TASKS:
        sources[name] = [record for _, record in read_jsonl(args.data_dir / "training" / name / "train.jsonl.gz")]
    short = [pair for _, pair in read_jsonl(pairs) if len(json.dumps(pair)) < PAIR_CHARACTERS]
    sources["pairs"] = draw.sample(short, len(short))
    tasks: dict[str, dict[str, Any]] = {}
    for name, records in sources.items():
        held_out = args.held_out_pairs if name == "pairs" else args.held_out
        tasks[name] = {}
        for field, chosen in (("validation", records[:held_out]), ("path", records[held_out:][: args.samples])):
            path = args.out / name / f"{field}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_jsonl(path, chosen)
            tasks[name][field] = str(path)
    tasks["stdlib"]["kind"] = "pretrain"
    tasks["pairs"]["kind"] = {"name": "dpo", "beta": 0.1}
    return tasks


def write_config(args: argparse.Namespace, pairs: Path) -> Path:
    """The run's config. Two checkpoints, so that a run can be killed after the first one."""
    config = {
        "model": {"model_name_or_path": str(args.model), "dtype": args.dtype},
        "adapter": {"lora_rank": 16, "lora_alpha": 32},
        "tasks": write_tasks(args, pairs),
        "data": {
            "max_length": 512, "over_length": "drop", "sampling": "uniform", "on_error": "skip",
            "cache_dir": str(args.out / "cache"), "num_proc": 1,
        },
        "train": {
            "max_steps": args.steps, "per_device_train_batch_size": 4, "learning_rate": args.learning_rate, "warmup_steps": 2,
            "eval_steps": args.steps, "save_steps": args.steps // 2, "report_to": [],
        },
        "backend": {"device": "cpu"},
        "output_dir": str(args.out / "run"),
    }  # fmt: skip
    path = args.out / "config.json"
    write_json(path, config)
    return path


def killed_and_resumed(config: Path, out: Path, steps: int) -> Path:
    """The folder of a run that got a SIGKILL some steps after its first checkpoint and then went on to the end."""
    folder = out / "killed"
    command = ("train", config, f"output_dir={folder}")
    if not (folder / "summary.json").exists():
        process = subprocess.Popen([sys.executable, "-m", "mftcoder", *map(str, command)], stdout=sys.stderr)
        while process.poll() is None and steps_done(folder) <= steps // 2 + 1:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        print(f"killed after {steps_done(folder)} steps, exit status {process.wait()}")
        mft(*command)
    return folder


def steps_done(folder: Path) -> int:
    """How many steps the metrics of a run hold."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') + path.read_text().count('"kind":"train"') if path.exists() else 0


def print_table(folder: Path) -> bool:
    """A row for each task; whether every held-out loss has fallen and more than half of the held-out pairs are right."""
    run = read_run(folder)
    first, last = run.validation[0], run.validation[-1]
    print(
        "| task | kind | loss of held-out samples before | after | held-out pairs right before | after | margin after |"
    )
    print("|---|---|---|---|---|---|---|")
    kinds = {name: task.get("kind", "sft") for name, task in read_json(folder.parent / "config.json")["tasks"].items()}
    good = True
    for name, before in first["losses"].items():
        after, kind = last["losses"][name], kinds[name]
        good &= after < before
        cells = ["", "", ""]
        if name in last.get("rewards", {}):
            accuracies = [one["rewards"][name]["accuracy"] for one in (first, last)]
            cells = [*(f"{value:.2f}" for value in accuracies), f"{last['rewards'][name]['margin']:.3f}"]
            good &= accuracies[1] > 0.5
        shown = kind if isinstance(kind, str) else kind["name"]
        print(f"| `{name}` | {shown} | {before:.4f} | {after:.4f} | {' | '.join(cells)} |")
    return good


def same_bits(first: Path, second: Path) -> bool:
    """Whether two runs end with the same weights and have the same losses in every step."""
    one, other = (find_checkpoint(folder, "latest") / "model" / ADAPTER_WEIGHTS for folder in (first, second))
    weights, again = load_file(one), load_file(other)
    losses = [[(r["step"], r["losses"]) for r in read_run(folder).train] for folder in (first, second)]
    return losses[0] == losses[1] and all(torch.equal(weights[key], again[key]) for key in weights)


def main() -> int:
    """Make the data, train twice, print."""
    parser = argparse.ArgumentParser(description="Train tasks of three kinds in one run, kill it, and resume it.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=120, help="records of each task to train on, at most")
    parser.add_argument("--held-out", type=int, default=8, help="records of each task to validate on")
    parser.add_argument("--held-out-pairs", type=int, default=48)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    args.model = args.model or smollm2_folder(lambda line: print(line, file=sys.stderr))
    pairs = make_pairs(args.data_dir / "mbpp" / "mbpp.jsonl.gz", args.out)
    config = write_config(args, pairs)
    started = time.perf_counter()
    if not (args.out / "run" / "summary.json").exists():
        mft("train", config)
    seconds = time.perf_counter() - started
    print(
        f"{sum(1 for _ in read_jsonl(args.out / 'pairs.jsonl'))} pairs of {sum(1 for _ in read_jsonl(pairs))} questions were found"
    )
    print(f"{args.steps} steps of 4 rows in {seconds:.0f} s, {args.held_out_pairs} held-out pairs, {args.dtype}")
    good = print_table(args.out / "run")
    same = same_bits(args.out / "run", killed_and_resumed(config, args.out, args.steps))
    print(f"all losses fall, and more than half of the held-out pairs are right: {'yes' if good else 'no'}")
    print(f"the run that was killed and resumed ends with the same bits: {'yes' if same else 'no'}")
    return 0 if good and same else 1


if __name__ == "__main__":
    sys.exit(main())
