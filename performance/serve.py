"""What `mft serve` adds to the engine itself: latency and tokens/s beside the raw engine, in the same run.

    python performance/serve.py MODEL --sizes 16/8,64/32 --clients 1,8,64

Both answer the same requests greedily: prompts of the first number of tokens, texts of at most the second. `raw` is the engine in this
process, whose threads wait as those of `mft` do; `serve` is the server as a process of its own, asked over HTTP with streaming. A client sends
its next request when the last one is complete, `--requests` times or more often, so that a pass has `--tokens`. The two take turns, `--rounds`
times each, after one pass that does not count; medians are printed. GOMP_SPINCOUNT in the environment holds for both; `--busy 1` measures
beside one other process that computes all the time.

    python performance/serve.py MODEL --load 120 --clients 64

Only the server: the clients ask for chats and completions, streamed and whole, of 1 to 64 tokens, one after another for so many seconds.
Printed: the requests, and those without a complete answer. Exit code 1 if there is one.
"""

import argparse
import asyncio
import math
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

from mftcoder.processes import let_waiting_threads_sleep

let_waiting_threads_sleep()  # takes effect only before torch is imported

import torch

from mftcoder.app.serving.model_choice import choose_source, load_model, usage_of
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Event, LiveEngine, Piece, Request, Submission

SOURCES = sorted((Path(__file__).parents[1] / "src" / "mftcoder").rglob("*.py"))


@dataclass(frozen=True)
class Measured:
    """One pass over all requests."""

    seconds: float
    tokens: int
    latencies: tuple[float, ...]  # seconds of each request

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sizes", default="16/8,64/32,256/128,1024/512")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--tokens", type=int, default=256, help="the fewest of a pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the time")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="ask the server only, for so long")
    options = parser.parse_args()
    if options.load:
        sys.exit(asyncio.run(load(options, max(map(int, options.clients.split(","))))))
    source = choose_source(options.model, checkpoint="best", trust_remote_code=False)
    ends = usage_of(source).end_ids
    model = load_model(source, device="auto", dtype=options.dtype)
    ids = source.tokenizer.encode("".join(path.read_text(encoding="utf-8") for path in SOURCES[:60]))
    with serving(options) as url, busy(options.busy):
        raw = Raw(model, source.tokenizer, ends)
        with raw.engine:
            print(f"{source.name}, {options.dtype}, {torch.get_num_threads()} threads, {options.rounds} rounds")
            print(
                f"{'size':>9} {'clients':>7} {'raw tokens/s':>13} {'serve':>8} {'adds':>7} {'raw latency s':>14} {'serve':>8}"
            )
            for size in options.sizes.split(","):
                for clients in map(int, options.clients.split(",")):
                    prompt, tokens = map(int, size.split("/"))
                    draw = random.Random(0)
                    requests = max(clients * options.requests, math.ceil(options.tokens / tokens))
                    starts = [draw.randrange(len(ids) - prompt) for _ in range(requests)]
                    prompts = [ids[start : start + prompt] for start in starts]
                    pair(raw, url, prompts[:clients], clients, min(tokens, 8))
                    row(size, clients, [pair(raw, url, prompts, clients, tokens) for _ in range(options.rounds)])


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
    """The server as a process of its own; its address."""
    words = ["mftcoder", "serve", options.model, "--port", "0", "--dtype", options.dtype, "--name", "m"]
    with subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        yield next(found[1] for line in server.stderr if (found := re.search(r"serving (http://\S+)/v1", line)))
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


def pair(raw: "Raw", url: str, prompts: Sequence[list[int]], clients: int, tokens: int) -> tuple[Measured, Measured]:
    """The same requests to both."""
    one, other = raw.measure(prompts, clients, tokens), asyncio.run(serve(url, prompts, clients, tokens))
    if one.tokens != other.tokens:
        print(f"the texts differ: {one.tokens} and {other.tokens} tokens", file=sys.stderr)
    return one, other


def row(size: str, clients: int, pairs: Sequence[tuple[Measured, Measured]]) -> None:
    """Print the medians of the rounds."""
    raw, served = (statistics.median(one.rate for one in side) for side in zip(*pairs, strict=True))
    adds = statistics.median(other.seconds / one.seconds - 1 for one, other in pairs)
    waits = [statistics.median(wait for one in side for wait in one.latencies) for side in zip(*pairs, strict=True)]
    print(
        f"{size:>9} {clients:>7} {raw:>13.1f} {served:>8.1f} {adds:>7.1%} {waits[0]:>14.2f} {waits[1]:>8.2f}",
        flush=True,
    )


class Raw:
    """The engine in this process."""

    def __init__(self, model: Any, tokenizer: Any, ends: frozenset[int]):
        self.ends = ends
        self.events: SimpleQueue[list[tuple[Submission, Event]]] = SimpleQueue()
        self.engine = LiveEngine(model, tokenizer, self.events.put, batch_size=64)

    def measure(self, prompts: Sequence[list[int]], clients: int, tokens: int) -> Measured:
        """All requests, `clients` at a time."""
        left, begun, latencies, total = list(prompts), {}, [], 0
        start = time.monotonic()

        def send() -> None:
            request = Request(left.pop(0), Sampling(tokens), self.ends)
            begun[self.engine.submit(request)] = time.monotonic()

        for _ in range(clients):
            send()
        while begun:
            for submission, event in self.events.get():
                assert isinstance(event, Piece), event
                if event.finish_reason is not None:
                    latencies.append(time.monotonic() - begun.pop(submission))
                    total += event.generated
                    if left:
                        send()
        return Measured(time.monotonic() - start, total, tuple(latencies))


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

    start = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Measured(time.monotonic() - start, total, tuple(latencies))


HEAD = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
JSON = {"Content-Type": "application/json"}

if __name__ == "__main__":
    main()
