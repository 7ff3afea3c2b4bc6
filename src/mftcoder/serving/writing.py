"""From the engine's thread to the event loop: the texts of one HTTP request, and their end when the client goes away."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from starlette.types import Receive

from mftcoder.errors import GenerationError
from mftcoder.generation.live_engine import Event, Piece, Request, RequestEngine, Submission
from mftcoder.serving.catalogue import ClientError
from mftcoder.serving.metrics import Metrics

QUIET_TURNS = 2  # turns of the event loop: one reads a request from its connection, the next one opens its texts
GATHER_SECONDS = 0.1  # the longest wait for requests that keep coming

Arrival = list[tuple[int, Event]] | None
"""The numbers of texts of one request, and what one step did to them; None when the client has gone."""
Numbered = tuple[int, Piece]


@dataclass
class Writer:
    """The way from requests to their texts. `most_texts` may be in work at the same time."""

    metrics: Metrics
    most_texts: int

    def __post_init__(self) -> None:
        self.engine: RequestEngine | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._places: dict[Submission, tuple[int, asyncio.Queue[Arrival]]] = {}
        self._gathered: list[Submission] = []  # requests that the engine does not have yet

    def deliver(self, events: list[tuple[Submission, Event]]) -> None:
        """Called by the engine's thread after each step."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: list[tuple[Submission, Event]]) -> None:
        arrivals: dict[asyncio.Queue[Arrival], list[tuple[int, Event]]] = {}
        for submission, event in events:
            if submission in self._places:
                number, queue = self._places[submission]
                arrivals.setdefault(queue, []).append((number, event))
        for queue, arrival in arrivals.items():
            queue.put_nowait(arrival)

    @property
    def texts(self) -> int:
        """Texts in work."""
        return len(self._places)

    def open(self, requests: Sequence[Request], receive: Receive) -> "Texts":
        """Queue the requests, with others that come in the same moment. ClientError 429 if too many are in work, 400 if they are too many ever."""
        assert self.engine is not None, "the server has started"
        if len(requests) > self.most_texts:
            raise ClientError(400, f"{len(requests)} texts are asked for; this server takes at most {self.most_texts}.")
        if self.texts + len(requests) > self.most_texts:
            raise ClientError(
                429,
                f"The server is busy: {self.texts} texts are in work, at most {self.most_texts} may be. Try again later.",
                code="rate_limit_exceeded",
            )
        queue: asyncio.Queue[Arrival] = asyncio.Queue()
        submissions = [self.engine.prepare(request) for request in requests]
        self._places |= {submission: (number, queue) for number, submission in enumerate(submissions)}
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._submit, 0, QUIET_TURNS, time.monotonic() + GATHER_SECONDS)
        self._gathered += submissions
        return Texts(self, submissions, queue, receive)

    def _submit(self, seen: int, turns: int, end: float) -> None:
        """Give the gathered requests to the engine together, once the event loop brought no other for some turns, or at `end`."""
        assert self.engine is not None
        turns = turns - 1 if len(self._gathered) == seen else QUIET_TURNS
        if turns and time.monotonic() < end:
            asyncio.get_running_loop().call_soon(self._submit, len(self._gathered), turns, end)
            return
        gathered, self._gathered = self._gathered, []
        self.engine.queue(gathered)

    def close(self, submissions: Sequence[Submission]) -> None:
        """Forget texts; those that are not complete are not generated any further."""
        for submission in submissions:
            submission.cancel()
            self._places.pop(submission, None)


class Texts:
    """The texts of one HTTP request; an async context manager, which ends them with the request."""

    def __init__(
        self, writer: Writer, submissions: Sequence[Submission], queue: "asyncio.Queue[Arrival]", receive: Receive
    ):
        self._writer, self._submissions, self._queue = writer, submissions, queue
        self._watch = asyncio.create_task(self._until_gone(receive))
        self.begin = time.monotonic()
        self.generated = [0] * len(submissions)
        self._left = len(submissions)

    async def __aenter__(self) -> "Texts":
        return self

    async def __aexit__(self, *error: object) -> None:
        self._watch.cancel()
        self._writer.close(self._submissions)
        self._writer.metrics.generated_tokens.inc(sum(self.generated))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)

    async def pieces(self, seconds: float | None = None) -> AsyncGenerator[list[Numbered], None]:
        """The pieces of each step until all texts have ended, the client has gone, or `seconds` are over. GenerationError if the engine fails."""
        while not self.complete:
            arrival = await self._next(seconds)
            if arrival is None:
                return
            pieces = [(number, event) for number, event in arrival if isinstance(event, Piece)]
            if pieces:
                self._count(pieces)
                yield pieces
            for _, event in arrival:
                if isinstance(event, GenerationError):
                    raise event

    @property
    def complete(self) -> bool:
        """Whether all texts have ended."""
        return not self._left

    def _count(self, pieces: Sequence[Numbered]) -> None:
        metrics, seconds = self._writer.metrics, time.monotonic() - self.begin
        if not any(self.generated):
            metrics.first_token.observe(seconds)
        for number, piece in pieces:
            self.generated[number] = piece.generated
            if piece.finish_reason is not None:
                self._left -= 1
                metrics.finished.labels(piece.finish_reason).inc()
                metrics.seconds.observe(seconds)

    async def _next(self, seconds: float | None) -> Arrival:
        if seconds is None:
            return await self._queue.get()
        left = self.begin + seconds - time.monotonic()
        try:
            return await asyncio.wait_for(self._queue.get(), max(left, 0))
        except TimeoutError:
            return None
