"""Requests that come at any time get the texts that they would get alone."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation import live_engine
from mftcoder.generation.batch_engine import BatchEngine
from mftcoder.generation.batches.row import DAMAGED
from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.live_engine import Event, LiveEngine, Piece, Request, Submission
from mftcoder.models.loading.load import load_folder

TEXTS = ("def add(a, b):", "x", "import torch\n\n\nclass Model:\n    def forward(self", "for i in range(10):\n", "é中")


class Live:
    """An engine, and the events of each submission in order."""

    def __init__(self, model: Any, tokenizer: Tokenizer, **options: Any):
        self.tokenizer = tokenizer
        self.events: SimpleQueue[tuple[Submission, Event]] = SimpleQueue()
        self.engine = LiveEngine(model, tokenizer, self.put, **options)

    def put(self, events: list[tuple[Submission, Event]]) -> None:
        for event in events:
            self.events.put(event)

    def at_first_event(self, then: Callable[[Submission], object]) -> None:
        """Call `then` when the next submission has its first event: in the engine's thread, so that no step comes in between."""

        def put(events: list[tuple[Submission, Event]]) -> None:
            self.engine.deliver = self.put
            then(events[0][0])
            self.put(events)

        self.engine.deliver = put

    def submit(self, text: str, *, temperature: float = 0.0, top_p: float = 1.0, tokens: int = 24, **more: Any) -> Any:
        sampling = Sampling(tokens, temperature, top_p, seed=7)
        ends = frozenset([self.tokenizer.eos_id])
        return self.engine.submit(Request(self.tokenizer.encode(text), sampling, ends, **more))

    def collect(self, wanted: Sequence[Submission]) -> list[list[Piece]]:
        found: dict[Submission, list[Piece]] = {submission: [] for submission in wanted}
        open_ones = set(wanted)
        while open_ones:
            submission, event = self.events.get(timeout=300)
            assert isinstance(event, Piece), event
            found[submission].append(event)
            if event.finish_reason:
                open_ones.remove(submission)
        return list(found.values())


@pytest.fixture
def live(model: Any, tokenizer: Tokenizer) -> Iterator[Live]:
    one = Live(model, tokenizer)
    with one.engine:
        yield one


def texts(pieces: list[list[Piece]]) -> list[str]:
    return ["".join(piece.text for piece in one) for one in pieces]


def batch_texts(model: Any, tokenizer: Tokenizer, *, stop: tuple[str, ...] = (), tokens: int = 24) -> list[str]:
    """What `mft generate` writes, greedy."""
    engine = BatchEngine(model, tokenizer, Sampling(tokens), end_ids=[tokenizer.eos_id])
    prompts = [Prompt("t", str(index), 0, text, stop) for index, text in enumerate(TEXTS)]
    by_id = {done.prompt.problem_id: done.text for done in engine.generate(prompts)}
    return [by_id[str(index)] for index in range(len(TEXTS))]


def test_requests_of_any_lengths_in_any_order_get_the_texts_of_the_batch_engine(
    live: Live, model: Any, tokenizer: Tokenizer
) -> None:
    for order in (TEXTS, TEXTS[::-1]):
        found = live.collect([live.submit(text) for text in order])
        assert dict(zip(order, texts(found), strict=True)) == dict(
            zip(TEXTS, batch_texts(model, tokenizer), strict=True)
        )


def test_a_longer_prompt_that_comes_later_changes_nothing_in_the_rows_before(
    live: Live, model: Any, tokenizer: Tokenizer
) -> None:
    short = live.submit(TEXTS[1])
    first = live.events.get(timeout=300)
    long = live.submit(TEXTS[2])
    assert first[0] is short
    pieces = live.collect([short, long])
    assert first[1].text + texts(pieces)[0] == batch_texts(model, tokenizer)[1]
    assert texts(pieces)[1] == batch_texts(model, tokenizer)[2]


def test_a_seeded_sample_is_the_same_alone_and_among_others(live: Live) -> None:
    alone = texts(live.collect([live.submit(TEXTS[0], temperature=1.0, sample=3)]))
    others = [
        live.submit(text, temperature=heat, top_p=0.9, sample=index)
        for index, (text, heat) in enumerate(zip(TEXTS, (0.0, 0.5, 1.0, 2.0, 1.0), strict=True))
    ]
    again = live.submit(TEXTS[0], temperature=1.0, sample=3)
    assert texts(live.collect([*others, again]))[-1] == alone[0]
    other_sample = texts(live.collect([live.submit(TEXTS[0], temperature=1.0, sample=4)]))
    assert other_sample != alone


def test_rows_that_the_cache_has_no_room_for_wait_or_step_back_and_still_get_their_texts(
    model: Any, tokenizer: Tokenizer
) -> None:
    small = Live(model, tokenizer, cache_tokens=260, batch_size=8)
    stepped_back = 0
    free_room = small.engine._free_room

    def counting() -> None:
        nonlocal stepped_back
        before = small.engine.running
        free_room()
        stepped_back += before - small.engine.running

    small.engine._free_room = counting  # type: ignore[method-assign]
    submissions = [small.submit(text, tokens=100) for text in TEXTS]  # before the thread runs: all wait for room
    with small.engine:
        found = small.collect(submissions)
    assert texts(found) == batch_texts(model, tokenizer, tokens=100)
    assert stepped_back > 0


def test_the_cache_in_memory_stays_within_its_size_whatever_comes_after_what(model: Any, tokenizer: Tokenizer) -> None:
    size, slots = 900, 0
    live = Live(model, tokenizer, cache_tokens=size, batch_size=8)

    def put(events: list[tuple[Submission, Event]]) -> None:
        nonlocal slots
        slots = max(slots, sum(batch.slots for batch in live.engine._batches.values()))
        live.put(events)

    live.engine.deliver = put
    long = "x = 1\n" * 60  # beside it, there is room for few other rows
    with live.engine:
        alone = texts(live.collect([live.submit(long, tokens=100)]))
        live.collect([live.submit(text, tokens=10) for text in TEXTS])
        found = live.collect([*(live.submit(text, tokens=100) for text in TEXTS), live.submit(long, tokens=100)])
    assert texts(found) == [*batch_texts(model, tokenizer, tokens=100), *alone]
    assert slots <= size


def test_the_memory_of_a_grown_cache_is_free_as_soon_as_it_is_empty(
    model: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_engine, "START", 64)
    live = Live(model, tokenizer, batch_size=8)
    caches: list[weakref.ref[Any]] = []
    live.at_first_event(lambda _: caches.extend(weakref.ref(b) for b in live.engine._batches.values()))
    gc.disable()  # nothing may depend on a collection of cycles, which can come much later
    try:
        with live.engine:
            live.collect([live.submit(text) for text in TEXTS])  # together they need more than an empty batch keeps
            live.collect([live.submit("x")])  # the batch was dropped before this answer
        assert caches and all(cache() is None for cache in caches)
    finally:
        gc.enable()


@pytest.mark.parametrize(("seconds_of_each", "came"), [(0.0, 4), (2e6, 2)])
def test_requests_that_follow_texts_which_ended_together_are_read_in_one_forward_pass(
    model: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, seconds_of_each: float, came: int
) -> None:
    """The engine waits for the next one a quarter of the last step, and one step in all."""
    live = Live(model, tokenizer)  # its thread does not run
    one_after_another = [live.submit(TEXTS[0])]
    clock = itertools.count(0.0, seconds_of_each)
    monkeypatch.setattr(live_engine, "GATHER_SECONDS", 1e6)
    monkeypatch.setattr(live_engine, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    live.engine._step_seconds, live.engine._ended = 4e6, 4
    timeouts = []

    def come(timeout: float) -> bool:
        timeouts.append(timeout)
        one_after_another.append(live.submit(TEXTS[0]))
        return True

    monkeypatch.setattr(live.engine._changed, "wait", come)
    assert live.engine._next() == one_after_another
    assert len(one_after_another) == came
    assert timeouts == [1e6] * (came - 1)


def test_no_request_waits_for_others_that_have_no_room_beside_it(
    model: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(model, tokenizer, batch_size=1)
    live.engine._step_seconds, live.engine._ended = 4e6, 3
    first = live.submit(TEXTS[0])
    monkeypatch.setattr(live.engine._changed, "wait", lambda timeout: pytest.fail("it waits"))
    assert live.engine._next() == [first]


def test_no_request_waits_for_others_longer_than_once(model: Any, tokenizer: Tokenizer) -> None:
    live = Live(model, tokenizer)
    live.engine._ended = 9
    live.submit(TEXTS[0])
    assert len(live.engine._next()) == 1  # after a quarter of the last step, which is 0 s here
    assert live.engine._ended == 0


def test_pieces_never_hold_a_part_of_a_stop_word(live: Live, model: Any, tokenizer: Tokenizer) -> None:
    whole = batch_texts(model, tokenizer)[0]
    word = whole[8:14]
    pieces = live.collect([live.submit(TEXTS[0], stop=(word, "never written"))])[0]
    assert texts([pieces]) == [whole[: whole.index(word)]]
    assert pieces[-1].finish_reason == "stop"
    assert len(pieces) > 2


def test_a_whole_text_comes_in_one_piece(live: Live, model: Any, tokenizer: Tokenizer) -> None:
    pieces = live.collect([live.submit(TEXTS[0], whole=True)])[0]
    assert [piece.text for piece in pieces] == batch_texts(model, tokenizer)[:1]
    assert (pieces[0].generated, pieces[0].finish_reason) == (24, "length")


def test_log_probabilities_are_the_models_own_and_name_each_token_of_the_text(
    live: Live, tiny_llama_dir: Path, tokenizer: Tokenizer
) -> None:
    reference = load_folder(tiny_llama_dir, dtype=torch.float32, attn_implementation="sdpa", device="cpu")
    pieces = live.collect([live.submit(TEXTS[0], temperature=2.0, logprobs=3)])[0]
    tokens = [token for piece in pieces for token in piece.tokens]
    ids = tokenizer.encode(TEXTS[0])
    with torch.no_grad():
        for token in tokens:
            expected = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert token.choice.logprob == pytest.approx(expected[token.choice.id].item(), abs=1e-4)
            assert [top for top, _ in token.choice.top] == expected.topk(3).indices.tolist()
            ids.append(token.choice.id)
    assert len(tokens) == 24
    assert tokenizer.decode(ids[len(tokenizer.encode(TEXTS[0])) :], skip_special_tokens=True) == texts([pieces])[0]


def test_a_cancelled_request_leaves_its_place_to_others(model: Any, tokenizer: Tokenizer) -> None:
    one = Live(model, tokenizer, batch_size=1)
    one.at_first_event(Submission.cancel)
    with one.engine:
        endless = one.submit(TEXTS[0], tokens=400)
        short = one.submit(TEXTS[1], tokens=3)
        while True:
            submission, event = one.events.get(timeout=300)
            if submission is short and isinstance(event, Piece) and event.finish_reason:
                break
        assert len(endless.row.tokens) < 400
        assert one.engine.running == 0


def test_a_failing_model_ends_the_running_requests_with_the_reason_and_serves_the_next(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        live.at_first_event(lambda _: patch.setattr(type(live.engine._batches[None]), "step", lambda self: 1 / 0))
        first = live.submit(TEXTS[0], tokens=400)
        while True:
            submission, event = live.events.get(timeout=300)
            if not isinstance(event, Piece):
                break
    assert submission is first
    assert isinstance(event, GenerationError)
    assert "ZeroDivisionError: division by zero" in str(event)
    assert texts(live.collect([live.submit(TEXTS[0])]))[0]


def test_a_row_without_finite_logits_fails_alone_and_the_next_one_in_its_slot_is_whole(
    model: Any, damaged: Any, tokenizer: Tokenizer
) -> None:
    asked = (TEXTS[2] * 3, TEXTS[2] + "中", TEXTS[1])  # the last one takes the place of the second in the cache
    expected = [
        BatchEngine(model, tokenizer, Sampling(24), end_ids=[tokenizer.eos_id]).generate([Prompt("", "", 0, text)])
        for text in asked
    ]
    one = Live(damaged, tokenizer, batch_size=2)
    with one.engine:
        first, broken, last = (one.submit(text) for text in asked)
        events = {submission: [] for submission in (first, broken, last)}  # type: ignore[var-annotated]
        while not all(found and getattr(found[-1], "finish_reason", True) for found in events.values()):
            submission, event = one.events.get(timeout=300)
            events[submission].append(event)
    assert [str(event) for event in events[broken]] == [DAMAGED]
    assert texts([events[first], events[last]]) == [next(expected[0]).text, next(expected[2]).text]


def test_a_prompt_that_fills_the_context_is_a_broken_invariant(live: Live) -> None:
    with pytest.raises(ValueError, match="a prompt of 512 tokens in a context of 512"):
        live.engine.submit(Request([5] * 512, Sampling()))
    assert live.engine.submit(Request([5] * 511, Sampling())).row.limit == 1
