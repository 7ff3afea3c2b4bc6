"""Answers requests that come at any time: one thread runs the model, and every request gets its text while it is written.

LiveEngine runs a model in this process: all rows of one adapter form a batch. A row that the cache has no room for waits, and the youngest row
goes back to the queue when the others need its room: it is then read again and continues where it was, with its own random numbers.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Self

import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.data.tokenizers.word_completion import HeldText, Vocabulary
from mftcoder.errors import GenerationError, reason
from mftcoder.generation.batches.batch import PREFILL_TOKENS, Batch, open_batch
from mftcoder.generation.batches.row import DAMAGED, Row, TokenChoice
from mftcoder.generation.engine import FinishReason, Prompt, Sampling
from mftcoder.generation.sampler import random_stream
from mftcoder.generation.text_stream import TextStream
from mftcoder.processes import keep_freed_memory

GATHER_SECONDS = 0.1  # the longest wait for the next request that can be read together with others
START = 512  # columns that a batch begins with, and goes back to when it is empty


@dataclass(frozen=True)
class Request:
    """One text that is asked for. `ids` and the text together have at most `LiveEngine.context` tokens."""

    ids: Sequence[int]
    sampling: Sampling
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the text."""
    stop: tuple[str, ...] = ()
    sample: int = 0
    """Seeds the sampling together with `sampling.seed`."""
    logprobs: int | None = None
    """Number of most probable tokens that each token comes with; None gives no log probabilities."""
    adapter: str | None = None
    held: Sequence[int] = ()
    """Tokens of a prompt's last word, taken off `ids`: the first tokens are held to their text, which is not part of the answer."""
    tail: str = ""
    """Text before the EOS token that is not part of the answer."""
    whole: bool = False
    """Whether the text is delivered at once, when it is complete."""


@dataclass(frozen=True)
class WrittenToken:
    """A token with its log probability, and where its text begins in the text."""

    choice: TokenChoice
    begin: int


@dataclass(frozen=True)
class Piece:
    """What is new in a text. The last piece has a finish reason."""

    text: str
    tokens: tuple[WrittenToken, ...]  # those whose text is out, where log probabilities were asked for
    generated: int  # tokens generated so far, the EOS token included
    finish_reason: FinishReason | None = None


Event = Piece | GenerationError


class Submission:
    """A request on its way through the engine."""

    def __init__(self, request: Request, row: Row, text: TextStream, context: int):
        self.request, self.row, self.text = request, row, text
        self._most = context - len(row.ids)
        self.cancelled = False
        self._characters = 0  # of the text that are delivered
        self._begins: list[int] = []  # where the text of each token begins
        self._delivered = 0  # tokens

    @property
    def generated(self) -> int:
        """Tokens generated, without those that wrote nothing but the prompt's last word."""
        return len(self.row.tokens) - (self.row.held.tokens if self.row.held else 0)

    def cancel(self) -> None:
        """Stop generating: nobody waits for this text. May be called from any thread."""
        self.cancelled = True

    def take_token(self) -> Piece | None:
        """Put the row's last token into the text; the piece to deliver, or None if there is none yet."""
        token = self.row.tokens[-1]
        ended = token in self.request.end_ids
        if not ended:
            self._begins.append(len(self.text.text))
            self.text.add(token)
        stopped = ended or self.text.stopped
        if stopped or self.generated >= self.row.limit or len(self.row.tokens) >= self._most:
            self.text.finish(ended=ended)
            return self._piece(len(self.text.text), "stop" if stopped or self.text.stopped else "length")
        return None if self.request.whole else self._piece(self.text.certain, None)

    def _piece(self, characters: int, finish_reason: FinishReason | None) -> Piece | None:
        if characters == self._characters and finish_reason is None:
            return None
        text, self._characters = self.text.text[self._characters : characters], characters
        tokens = self._tokens(characters) if self.request.logprobs is not None else ()
        return Piece(text, tokens, self.generated, finish_reason)

    def _tokens(self, characters: int) -> tuple[WrittenToken, ...]:
        """The tokens that begin in the delivered text and were not delivered."""
        first = self._delivered = max(self._delivered, self.row.held.tokens if self.row.held else 0)
        while self._delivered < len(self._begins) and self._begins[self._delivered] < characters:
            self._delivered += 1
        return tuple(WrittenToken(self.row.choices[at], self._begins[at]) for at in range(first, self._delivered))


Deliver = Callable[[list[tuple[Submission, Event]]], None]
"""What is called after every step, from the engine's thread, with the pieces that it gave."""


class RequestEngine(ABC):
    """Answers many requests at once, in a thread of its own; a context manager, inside which the thread runs."""

    alive = True
    """Whether it can answer; an engine that has died refuses every request."""
    takes_temperature_last = True
    """Whether it follows `Sampling.temperature_last`."""
    highest_temperature = float("inf")
    """The highest temperature that it takes."""

    def __init__(self, tokenizer: Tokenizer, deliver: Deliver, context: int):
        """`context`: most tokens of a prompt and its text together."""
        self.tokenizer, self.deliver, self.context = tokenizer, deliver, context
        self.waiting: deque[Submission] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens by their bytes."""
        return Vocabulary(self.tokenizer)

    @property
    @abstractmethod
    def running(self) -> int:
        """Texts that are being generated."""

    def submit(self, request: Request) -> Submission:
        """Queue a request. May be called from any thread."""
        submission = self.prepare(request)
        self.queue([submission])
        return submission

    def prepare(self, request: Request) -> Submission:
        """A request that can be queued. May be called from any thread."""
        size = len(request.ids) + len(request.held)
        limit = min(request.sampling.max_new_tokens, self.context - size)
        if limit <= 0 or not request.ids:
            raise ValueError(f"a prompt of {size} tokens in a context of {self.context}")
        stream = random_stream(Prompt("", "", request.sample, ""), request.sampling.seed)
        held = HeldText(self.vocabulary, request.held) if request.held else None
        row = Row(list(request.ids), limit, request.sampling, stream, request.logprobs, held)
        text = TextStream(self.tokenizer, request.ids, request.stop, request.held, request.tail)
        return Submission(request, row, text, self.context)

    def queue(self, submissions: Sequence[Submission]) -> None:
        """Queue requests together: a forward pass that has room for all reads all. May be called from any thread."""
        with self._changed:
            self.waiting.extend(submissions)
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_work():
            events: list[tuple[Submission, Event]] = []
            try:
                self._drop_cancelled()
                self._work(events)
            except Exception as error:  # no request may wait for ever, whatever failed
                events += self._fail(error)
            if events:
                self.deliver(events)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self.waiting or self.running)
            return not self._closing

    def _drop_cancelled(self) -> None:
        with self._changed:
            self.waiting = deque(submission for submission in self.waiting if not submission.cancelled)

    @abstractmethod
    def _work(self, events: list[tuple[Submission, Event]]) -> None:
        """Do one step, and append what it gave."""

    @abstractmethod
    def _fail(self, error: Exception) -> list[tuple[Submission, Event]]:
        """Give up the running requests: the problem of each."""


class LiveEngine(RequestEngine):
    """Runs a transformers model, or one that OpenVINO has compiled."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, deliver: Deliver, *, batch_size: int = 16, cache_tokens: int = 32768
    ):
        """`cache_tokens` is the largest size of the key-value cache: rows times columns, at least one row of the whole context."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        super().__init__(tokenizer, deliver, min(int(positions or cache_tokens), cache_tokens))
        self.model = model
        if model.device.type == "cpu":
            keep_freed_memory()
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.active: dict[str | None, list[Submission]] = {}
        self._batches: dict[str | None, Batch] = {}
        self._adapter: str | None = None
        self._ended = 0  # texts, since a request was waiting
        self._step_seconds = 0.0  # of the last step

    @property
    def running(self) -> int:
        """Rows that are being generated."""
        return sum(map(len, self.active.values()))

    def _fail(self, error: Exception) -> list[tuple[Submission, Event]]:
        """End all rows: the cache may be incomplete. Requests that wait are kept."""
        torch_memory = isinstance(error, torch.OutOfMemoryError)
        hint = ". Start the server with a smaller --batch-size or --cache-tokens" if torch_memory else ""
        problem = GenerationError(f"the engine failed: {type(error).__name__}: {reason(error)}{hint}")
        failed = [submission for rows in self.active.values() for submission in rows]
        self.active.clear()
        self._batches.clear()
        return [(submission, problem) for submission in failed]

    def _drop_cancelled(self) -> None:
        super()._drop_cancelled()
        for adapter, rows in self.active.items():
            for index in range(len(rows) - 1, -1, -1):
                if rows[index].cancelled:
                    self._remove(adapter, index)

    def _remove(self, adapter: str | None, index: int) -> Submission:
        rows = self.active[adapter]
        submission = rows[index]
        self._ended += 1
        self._batches[adapter].remove(index)
        rows[index] = rows[-1]
        rows.pop()
        if not rows and self._batches[adapter].slots > START:
            del self._batches[adapter]  # gives the memory back
        return submission

    def _work(self, events: list[tuple[Submission, Event]]) -> None:
        """Add waiting rows if there is room, else generate a token for every row."""
        added = self._next()
        begin = time.monotonic()
        if added:
            adapter = added[0].request.adapter
            self.active.setdefault(adapter, []).extend(added)
            self._use(adapter)
            batch = self._batch(adapter)
            batch.add([submission.row for submission in added])
            self._collect(adapter, added, events)
            self._step_seconds = time.monotonic() - begin
            return
        self._free_room()
        for adapter, rows in list(self.active.items()):
            if rows:
                self._use(adapter)
                self._batches[adapter].step()
                self._collect(adapter, list(rows), events)
        self._step_seconds = time.monotonic() - begin

    def _collect(
        self, adapter: str | None, moved: Sequence[Submission], events: list[tuple[Submission, Event]]
    ) -> None:
        for submission in moved:
            event = submission.take_token() if submission.row.finite else GenerationError(DAMAGED)
            if event is None:
                continue
            events.append((submission, event))
            if isinstance(event, GenerationError) or event.finish_reason is not None:
                self._remove(adapter, self.active[adapter].index(submission))

    def _batch(self, adapter: str | None) -> Batch:
        if adapter not in self._batches:
            start = min(START, self.cache_tokens)
            self._batches[adapter] = open_batch(
                self.model, self.tokenizer.pad_id, max_rows=1, capacity=start, slots=self.cache_tokens
            )
        return self._batches[adapter]

    def _use(self, adapter: str | None) -> None:
        """Let the model compute with this adapter; None is the model itself."""
        if adapter == self._adapter:
            return
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter)
        self._adapter = adapter

    def _next(self) -> list[Submission]:
        """The longest-waiting requests that have room now and go well into one forward pass."""
        with self._changed:
            if self.waiting:
                self._gather()
            added: list[Submission] = []
            while self.waiting and self._fits([*added, self.waiting[0]]):
                added.append(self.waiting.popleft())
            return added

    def _gather(self) -> None:
        """Wait for the clients of texts that ended together: they ask again one after another, and one forward pass reads all their prompts.

        The next one may take a quarter of the last step, and all of them together as long as one step.
        """
        patience = min(self._step_seconds / 4, GATHER_SECONDS)
        end = time.monotonic() + 4 * patience
        wanted = min(self._ended, self.batch_size - self.running)
        while len(self.waiting) < wanted and time.monotonic() < end and not self._closing:
            if not self._changed.wait(patience):
                break
        self._ended = 0

    def _fits(self, added: Sequence[Submission]) -> bool:
        lengths = [len(submission.row.ids) + len(submission.row.tokens) for submission in added]
        widest = max(lengths)
        if self.running + len(added) > self.batch_size or added[-1].request.adapter != added[0].request.adapter:
            return False
        if len(added) > 1 and (len(added) * widest > PREFILL_TOKENS or widest > 2 * min(lengths)):
            return False
        alone = not self.running and len(added) == 1
        return alone or self._size(added[0].request.adapter, len(added), widest) <= self.cache_tokens

    def _size(self, adapter: str | None, more_rows: int = 0, width: int = 0) -> int:
        """Tokens of cache that all batches need in the next steps, with so many rows more in one of them."""
        self._batch(adapter)
        return sum(
            batch.room(*((more_rows, width) if name == adapter else (0, 0))) for name, batch in self._batches.items()
        )

    def _free_room(self) -> None:
        """Send the youngest rows back to the queue while the next steps need more room than there is."""
        while self.running > 1 and self._size(None) > self.cache_tokens:
            adapter = max((name for name, rows in self.active.items() if rows), key=lambda name: len(self.active[name]))
            youngest = min(range(len(self.active[adapter])), key=lambda at: len(self.active[adapter][at].row.tokens))
            submission = self._remove(adapter, youngest)
            with self._changed:
                self.waiting.appendleft(submission)


def stream_pieces(model: Any, tokenizer: Tokenizer, request: Request, **options: Any) -> Iterator[Piece]:
    """The pieces of one text, for a program that has one user."""
    events: SimpleQueue[Event] = SimpleQueue()

    def deliver(found: list[tuple[Submission, Event]]) -> None:
        for _, event in found:
            events.put(event)

    with LiveEngine(model, tokenizer, deliver, **options) as engine:
        submission = engine.submit(request)
        try:
            while True:
                event = events.get()
                if isinstance(event, GenerationError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            submission.cancel()
