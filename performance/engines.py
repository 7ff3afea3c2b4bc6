"""Tokens/s of each engine on this machine, and whether it writes the greedy texts of transformers in float32.

    python performance/engines.py MODEL [--engines transformers-float32,transformers-bfloat16,openvino,vllm]

Every engine is a process of its own and gets the same prompts of `--prompt` tokens, cut from this repository, as token ids; it writes
`--tokens` tokens for each, all at once. The best of `--rounds` passes counts. `start` is the time until the engine can answer, with the
weights read, without imports. An engine that is not installed here has no row.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mftcoder.processes import let_waiting_threads_sleep

ENGINES = ("transformers-float32", "transformers-bfloat16", "openvino", "vllm")
SOURCES = sorted((Path(__file__).parents[1] / "src" / "mftcoder").rglob("*.py"))[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--clients", default="1,8,64", help="texts that are written at the same time")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options)
        return
    print(f"{options.model}: prompts of {options.prompt} tokens, texts of {options.tokens}\n")
    numbers = options.clients.split(",")
    print("| engine | start, s |" + "".join(f" {number}, tokens/s |" for number in numbers) + " greedy texts alike |")
    print("|---|---:|" + "---:|" * len(numbers) + "---:|", flush=True)
    expected: list[list[int]] = []
    for engine in options.engines.split(","):
        if engine in ("openvino", "vllm") and find_spec(engine) is None:
            continue
        arguments = [sys.executable, __file__, *sys.argv[1:], "--engines", engine, "--one"]
        found = json.loads(subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout)
        expected = expected or found["texts"]
        alike = sum(mine == theirs for mine, theirs in zip(found["texts"], expected, strict=True))
        rates = "".join(f" {rate:.1f} |" for rate in found["rates"])
        print(f"| {engine} | {found['start']:.1f} |{rates} {alike} of {len(expected)} |", flush=True)


def measure(options: argparse.Namespace) -> None:
    """Print what one engine did, as JSON."""
    from mftcoder.app.serving.model_choice import choose_source
    from mftcoder.generation.engine import Sampling
    from mftcoder.generation.live_engine import Event, Request, Submission

    source = choose_source(options.model, checkpoint="best", trust_remote_code=False)
    ids = source.tokenizer.encode("".join(path.read_text(encoding="utf-8") for path in SOURCES))
    draw = random.Random(0)
    numbers = [int(number) for number in options.clients.split(",")]
    starts = [draw.randrange(len(ids) - options.prompt) for _ in range(max(numbers))]
    prompts = [list(ids[start : start + options.prompt]) for start in starts]
    events: SimpleQueue[list[tuple[Submission, Event]]] = SimpleQueue()
    begin = time.monotonic()
    rates, texts = [], []
    with opened(source, options, events.put, max(numbers)) as engine:
        start = time.monotonic() - begin
        for number in numbers:
            best = 0.0
            for _ in range(options.rounds):
                begin = time.monotonic()
                asked = [
                    engine.prepare(Request(prompt, Sampling(options.tokens), whole=True)) for prompt in prompts[:number]
                ]
                engine.queue(asked)
                waiting = number
                while waiting:
                    for _, event in events.get():
                        if isinstance(event, Exception):
                            raise event
                        waiting -= event.finish_reason is not None
                best = max(best, number * options.tokens / (time.monotonic() - begin))
            rates.append(best)
            texts = [submission.row.tokens for submission in asked]
    print(json.dumps({"start": start, "rates": rates, "texts": texts}))


def opened(source: Any, options: argparse.Namespace, deliver: Any, batch_size: int) -> Any:
    """The engine with its model."""
    from mftcoder.app.serving.model_choice import load_model
    from mftcoder.generation.live_engine import LiveEngine

    name, _, dtype = options.engines.partition("-")
    if name != "vllm":
        model = load_model(source, device="cpu", dtype=dtype or None, engine=name)
        return LiveEngine(model, source.tokenizer, deliver, batch_size=batch_size)
    from mftcoder.app.serving.vllm_model import open_vllm
    from mftcoder.generation.vllm_engine import VllmLiveEngine

    context = options.prompt + options.tokens
    engine, loras = open_vllm(source, {}, context=context, dtype="float32", batch_size=batch_size, flags=[])
    return VllmLiveEngine(engine, source.tokenizer, deliver, loras)


if __name__ == "__main__":
    let_waiting_threads_sleep()  # as the commands do
    main()
