"""The way of texts from the engine to the connection: requests go in together, and the events of a step come out in one write."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` brings fastapi")
pytest.importorskip("prometheus_client", reason="the extra `serve` brings prometheus-client")

import orjson
import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import LiveEngine, Request, Submission
from mftcoder.models.loading.load import load_folder
from mftcoder.serving import writing
from mftcoder.serving.app import Api, infill_chunks, make_app
from mftcoder.serving.catalogue import Catalogue, Served
from mftcoder.serving.metrics import Metrics
from mftcoder.serving.writing import Texts, Writer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_llama_dir))


@pytest.fixture
def writer(tiny_llama_dir: Path, tokenizer: Tokenizer) -> Writer:
    """Its engine's thread does not run."""
    model = load_folder(tiny_llama_dir, dtype=torch.float32, attn_implementation="sdpa", device="cpu")
    one = Writer(Metrics(), 100)
    one.engine = LiveEngine(model, tokenizer, one.deliver)
    return one


@pytest.fixture
def queued(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> list[list[Submission]]:
    """What the engine got together."""
    groups: list[list[Submission]] = []
    monkeypatch.setattr(writer.engine, "queue", lambda submissions: groups.append(list(submissions)))
    return groups


async def never() -> Any:
    await asyncio.Event().wait()


def open_texts(writer: Writer, count: int) -> Texts:
    return writer.open([Request([5, 6], Sampling(4)) for _ in range(count)], never)


def test_requests_of_the_same_moment_reach_the_engine_together(
    writer: Writer, queued: Sequence[Sequence[Submission]]
) -> None:
    async def come() -> None:
        open_texts(writer, 1), open_texts(writer, 2)
        await asyncio.sleep(0)  # the event loop reads the next ones in its next turn
        open_texts(writer, 3)
        while not queued:
            await asyncio.sleep(0)

    asyncio.run(come())
    assert [len(group) for group in queued] == [6]


def test_requests_that_never_stop_coming_do_not_hold_back_the_first_ones(
    writer: Writer, queued: Sequence[Sequence[Submission]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GATHER_SECONDS", 0.0)

    async def come() -> None:
        while not queued and writer.texts < 90:
            open_texts(writer, 1)
            await asyncio.sleep(0)

    asyncio.run(come())
    assert queued and writer.texts < 90


class Client:
    """Asks the application itself, and keeps what it writes."""

    def __init__(self, writer: Writer, tokenizer: Tokenizer):
        catalogue = Catalogue([Served("m")], tokenizer, frozenset(), 512)
        self.app = make_app(Api(catalogue, writer, writer.metrics), pytest.fail)
        self.writes: list[dict[str, Any]] = []

    async def ask(self, path: str, **body: Any) -> None:
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
        scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"version": "3.0"}}
        coming = [{"type": "http.request", "body": orjson.dumps(body), "more_body": False}]

        async def receive() -> Any:
            return coming.pop() if coming else await never()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                self.writes.append(message)

        await self.app(scope, receive, send)

    @property
    def events(self) -> Iterator[list[Any]]:
        """The events of each write."""
        for message in self.writes:
            lines = message["body"].decode().split("\n\n")[:-1]
            yield [line if line == "data: [DONE]" else orjson.loads(line.removeprefix("data: ")) for line in lines]


def test_the_events_of_a_step_are_one_write_and_the_last_ones_end_the_stream(
    writer: Writer, tokenizer: Tokenizer
) -> None:
    client = Client(writer, tokenizer)

    async def ask() -> None:
        writer.loop = asyncio.get_running_loop()
        assert writer.engine is not None
        with writer.engine:
            more = {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
            await client.ask("/v1/completions", prompt="x = ", max_tokens=6, temperature=0, **more)

    asyncio.run(ask())
    writes = list(client.events)
    for events in writes[:-1]:
        assert [event["choices"][0]["index"] for event in events] == [0, 1, 2]
    *ends, usage, done = writes[-1]
    assert [event["choices"][0]["finish_reason"] for event in ends] == ["length"] * 3
    assert usage["usage"]["completion_tokens"] == 18
    assert done == "data: [DONE]"
    assert [message["more_body"] for message in client.writes] == [True] * (len(writes) - 1) + [False]
    assert len(writes) > 1


def test_a_stream_that_cannot_go_on_ends_with_the_error(writer: Writer, tokenizer: Tokenizer) -> None:
    """NaN weights: the request fails, the server lives. /infill streams llama.cpp's events."""

    async def ask() -> list[tuple[bytes, bool]]:
        writer.loop = asyncio.get_running_loop()
        assert isinstance(writer.engine, LiveEngine)
        writer.engine.model.get_input_embeddings().weight.data[:] = float("nan")
        with writer.engine:
            await client.ask("/v1/completions", prompt="x = ", max_tokens=6, stream=True)
            return [chunk async for chunk in infill_chunks(open_texts(writer, 1), None)]

    client = Client(writer, tokenizer)
    ((event, is_last),) = asyncio.run(ask())
    assert [event] == [message["body"] for message in client.writes]
    assert is_last and [message["more_body"] for message in client.writes] == [False]
    (((told,),),) = (client.events,)
    assert "not finite numbers" in told["error"]["message"]
