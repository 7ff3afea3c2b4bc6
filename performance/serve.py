"""What `mft serve` adds to the engine itself: latency and tokens/s beside the raw engine, in the same run.

    python performance/serve.py MODEL --sizes 16/8,64/32 --clients 1,8,64

Both sides answer the same requests greedily with the same limits: prompts of the first number of tokens, given as token ids, and texts of at
most the second, which both decode token by token. `raw` is the engine in this process, whose threads wait as those of `mft` do; it gets
the requests of clients that ask at the same time in one moment. `serve` is the server as a process of its own, asked over HTTP with streaming: the time of its
client counts as its own, and `client CPU` says how much of the time of a pass it computed. A client sends its next request when the last one is complete.

After a short pass that does not count, a cell takes about `--seconds`: `--rounds` pairs of passes, in which the two sides take turns in
beginning. A pass has several requests of each client where there is time for them. Where there is no time for one, its texts are shorter, and
`run` says how long they were; never shorter than 8 tokens, so a cell of many long prompts takes longer, with 2 rounds.
Medians are printed. `added` is the time for a token beside that of `raw` in the same round, with the quartiles of the rounds.
GOMP_SPINCOUNT in the environment holds for both sides; `--busy 1` measures beside one other process that computes all the time.

    python performance/serve.py MODEL --load 120 --clients 64

Only the server: the clients ask for chats and completions, streamed and whole, of 1 to 64 tokens, one after another for so many seconds.
Printed: the requests, and those without a complete answer. Exit code 1 if there is one.
"""

import argparse
import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import orjson

from mftcoder.processes import let_waiting_threads_sleep, sigterm_as_interrupt

let_waiting_threads_sleep()  # takes effect only before torch is imported

import torch

from mftcoder.app.serving.model_choice import CACHE_TOKENS, choose_source, load_model, usage_of
from mftcoder.generation.batches.batch import GAP
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Event, LiveEngine, Piece, Request, Submission

SOURCES = sorted((Path(__file__).parents[1] / "src" / "mftcoder").rglob("*.py"))


BATCH = 64  # texts that both sides generate together
PROBED = 4  # tokens of each text of the first pass
SHORTEST = 8
FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class Measured:
    """One pass over all requests."""

    seconds: float
    tokens: int
    latencies: tuple[float, ...]  # seconds of each request
    read_seconds: float = 0.0  # until every request had its first token
    client_seconds: float = 0.0  # CPU time of the client

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Plan:
    """How a cell is measured."""

    rounds: int
    requests: int  # of each client in a pass
    tokens: int  # of each text

    @classmethod
    def fitting(cls, probe: Measured, tokens: int, *, seconds: float, rounds: int) -> "Plan":
        """The passes that take about `seconds`, as far as the time of a short pass tells."""
        step = max(probe.seconds - probe.read_seconds, 0.001) / (PROBED - 1)
        most = seconds / rounds / 2  # of a pass
        whole = probe.read_seconds + step * (tokens - 1)
        if whole <= most:
            return cls(rounds, int(most / whole), tokens)
        short = min(tokens, max(SHORTEST, 1 + int((most - probe.read_seconds) / step)))
        needed = probe.read_seconds + step * (short - 1)
        return cls(min(rounds, max(FEWEST_ROUNDS, int(seconds / needed / 2))), 1, short)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sizes", default="16/8,64/32,256/128,1024/512")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=120, help="of a size with a number of clients, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="auto", help="transformers or openvino, for both sides")
    parser.add_argument("--dtype", help="default: that of the model's files")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the time")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="ask the server only, for so long")
    options = parser.parse_args()
    sizes = [(int(prompt), int(tokens)) for prompt, tokens in (size.split("/") for size in options.sizes.split(","))]
    clients = [int(number) for number in options.clients.split(",")]
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds {options.rounds}: at least {FEWEST_ROUNDS}")
    with sigterm_as_interrupt():  # the server ends with the benchmark
        if options.load:
            sys.exit(asyncio.run(load(options, max(clients))))
        compare(options, sizes, clients)


def compare(options: argparse.Namespace, sizes: Sequence[tuple[int, int]], numbers: Sequence[int]) -> None:
    """Print a row for each size and number of clients."""
    source = choose_source(options.model, checkpoint="best", trust_remote_code=False)
    model = load_model(source, device="auto", dtype=options.dtype, engine=options.engine)
    ids = source.tokenizer.encode("".join(path.read_text(encoding="utf-8") for path in SOURCES[:60]))
    # Room for all texts at once, so that none is read twice.
    cache_tokens = max(CACHE_TOKENS, max(numbers) * max(prompt + tokens + GAP for prompt, tokens in sizes))
    with serving(options, cache_tokens) as url, busy(options.busy):
        raw = Raw(model, source.tokenizer, usage_of(source).end_ids, cache_tokens)
        with raw.engine:
            print(
                f"{source.name}, {type(model).__name__}, {options.dtype or source.dtype()}, {torch.get_num_threads()} threads, batches of at most {BATCH}"
            )
            print(HEADER, flush=True)
            for prompt, tokens in sizes:
                for clients in numbers:
                    prompts = drawn(ids, prompt)
                    probe, _ = pair(raw, url, [next(prompts) for _ in range(clients)], clients, PROBED)
                    plan = Plan.fitting(probe, tokens, seconds=options.seconds, rounds=options.rounds)
                    asked = [next(prompts) for _ in range(clients * plan.requests)]
                    pairs = [
                        pair(raw, url, asked, clients, plan.tokens, raw_first=number % 2 == 0)
                        for number in range(plan.rounds)
                    ]
                    row(f"{prompt}/{tokens}", clients, plan, pairs)


def drawn(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """Prompts from random places."""
    draw = random.Random(0)
    while True:
        start = draw.randrange(len(ids) - length)
        yield list(ids[start : start + length])


@contextmanager
def serving(options: argparse.Namespace, cache_tokens: int = CACHE_TOKENS) -> Iterator[str]:
    """The server as a process of its own; its address."""
    words = ["mftcoder", "serve", options.model, "--port", "0", "--engine", options.engine, "--name", "m"]
    words += ["--dtype", options.dtype] if options.dtype else []
    words += ["--batch-size", str(BATCH), "--cache-tokens", str(cache_tokens)]
    with subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield next(found[1] for line in server.stderr if (found := re.search(r"serving (http://\S+)/v1", line)))
        finally:
            server.terminate()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that take a processor each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


async def load(options: argparse.Namespace, clients: int) -> int:
    """Ask the server from all sides for a while; the exit code."""
    outcomes: Counter[tuple[str, str]] = Counter()
    with serving(options) as url:
        end = time.monotonic() + options.load
        async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=clients)) as http:

            async def client(number: int) -> None:
                draw = random.Random(number)
                while time.monotonic() < end:
                    outcomes[await asked(http, url, draw)] += 1

            await asyncio.gather(*map(client, range(clients)))
    lost = sum(count for (_, outcome), count in outcomes.items() if outcome != "complete")
    print(f"{clients} clients, {options.load:.0f} s: {outcomes.total():,} requests, {lost} without a complete answer")
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:>24}  {outcome:<20} {count:>6,}")
    return int(lost > 0)


async def asked(http: httpx.AsyncClient, url: str, draw: random.Random) -> tuple[str, str]:
    """One request of any kind: what it was, and whether its answer was complete."""
    is_chat, is_stream, tokens = draw.random() < 0.5, draw.random() < 0.5, draw.randint(1, 64)
    text = "def f" + "(x, y)" * draw.randint(1, 20)
    body = {"max_tokens": tokens, "seed": draw.randrange(1000), "stream": is_stream}
    body |= {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
    kind = f"{'chat' if is_chat else 'completion'}, {'streamed' if is_stream else 'whole'}"
    path = "chat/completions" if is_chat else "completions"
    try:
        answer = await http.post(f"{url}/v1/{path}", content=orjson.dumps(body), headers=JSON)
    except httpx.HTTPError as error:
        return kind, type(error).__name__
    if answer.status_code != 200:
        return kind, f"status {answer.status_code}"
    if is_stream and not answer.text.rstrip().endswith("data: [DONE]"):
        return kind, "cut stream"
    return kind, "complete" if '"finish_reason":"' in answer.text.replace(" ", "") else "no reason of its end"


def pair(
    raw: "Raw", url: str, prompts: Sequence[list[int]], clients: int, tokens: int, *, raw_first: bool = True
) -> tuple[Measured, Measured]:
    """The same requests to both."""
    one = raw.measure(prompts, clients, tokens) if raw_first else None
    other = asyncio.run(serve(url, prompts, clients, tokens))
    one = one or raw.measure(prompts, clients, tokens)
    if one.tokens != other.tokens:
        print(f"the texts differ: {one.tokens} and {other.tokens} tokens", file=sys.stderr)
    return one, other


HEADER = """
| size | clients | run | requests | rounds | engine, tokens/s | server, tokens/s | engine, latency s | server, latency s | added (quartiles) | client CPU |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def row(size: str, clients: int, plan: Plan, pairs: Sequence[tuple[Measured, Measured]]) -> None:
    """Print the medians of the rounds."""
    sides = list(zip(*pairs, strict=True))
    raw, served = (statistics.median(one.rate for one in side) for side in sides)
    waits = [statistics.median(wait for one in side for wait in one.latencies) for side in sides]
    added = [one.rate / other.rate - 1 for one, other in pairs]
    low, middle, high = statistics.quantiles(added, n=4, method="inclusive")
    client = statistics.median(one.client_seconds / one.seconds for one in sides[1])
    run = f"{size.partition('/')[0]}/{plan.tokens}"
    print(
        f"| {size} | {clients} | {run} | {clients * plan.requests} | {plan.rounds} | {raw:.1f} | {served:.1f} | {waits[0]:.2f} "
        f"| {waits[1]:.2f} | {middle:.1%} ({low:.1%} to {high:.1%}) | {client:.1%} |",
        flush=True,
    )


class Raw:
    """The engine in this process."""

    def __init__(self, model: Any, tokenizer: Any, ends: frozenset[int], cache_tokens: int):
        self.ends = ends
        self.events: SimpleQueue[list[tuple[Submission, Event]]] = SimpleQueue()
        self.engine = LiveEngine(model, tokenizer, self.events.put, batch_size=BATCH, cache_tokens=cache_tokens)

    def measure(self, prompts: Sequence[list[int]], clients: int, tokens: int) -> Measured:
        """All requests, `clients` at a time."""
        left, latencies, total, read = list(prompts), [], 0, 0.0
        begun: dict[Submission, float] = {}
        unread: set[Submission] = set()
        start = time.monotonic()

        def send(count: int) -> None:
            asked, left[:count] = left[:count], []
            submissions = [self.engine.prepare(Request(ids, Sampling(tokens), self.ends)) for ids in asked]
            begun.update(dict.fromkeys(submissions, time.monotonic()))
            unread.update(submissions)
            self.engine.queue(submissions)

        send(clients)
        while begun:
            ended = 0
            for submission, event in self.events.get():
                assert isinstance(event, Piece), event
                if submission in unread:
                    unread.remove(submission)
                    read = time.monotonic() - start
                if event.finish_reason is not None:
                    latencies.append(time.monotonic() - begun.pop(submission))
                    total += event.generated
                    ended += 1
            if ended:
                send(ended)
        return Measured(time.monotonic() - start, total, tuple(latencies), read)


async def serve(url: str, prompts: Sequence[list[int]], clients: int, tokens: int) -> Measured:
    """The same over HTTP, by a client that only looks for the end of each answer: its own time counts as the server's."""
    left, latencies, total = list(prompts), [], 0
    host, port = url.removeprefix("http://").split(":")

    async def client() -> None:
        nonlocal total
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        while left:
            body = {"prompt": left.pop(0), "max_tokens": tokens, "temperature": 0, "stream": True}
            content = orjson.dumps(body | {"stream_options": {"include_usage": True}})
            begin = time.monotonic()
            writer.write(HEAD.format(len(content)).encode() + content)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            answer = await reader.readuntil(END)
            latencies.append(time.monotonic() - begin)
            total += int(answer.rpartition(b'"completion_tokens":')[2].partition(b",")[0])
        writer.close()

    start, computed = time.monotonic(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds, computed = time.monotonic() - start, time.process_time() - computed
    return Measured(seconds, total, tuple(latencies), client_seconds=computed)


HEAD = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
JSON = {"Content-Type": "application/json"}

if __name__ == "__main__":
    main()
