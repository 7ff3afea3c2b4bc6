"""Segments -> TokenizedSample. The shift by one token happens here and nowhere else.

No token crosses the border between prompt and answer, so the prompt has the same tokens as in generation.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mftcoder.data.tokenizers.tokenizer import Tokenizer

IGNORED = -100
"""The target of a position that is not trained."""

_MAX_CHARACTERS = 1 << 19
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")

OverLength = Literal["truncate", "drop", "split"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered conversation; `trained` applies to all of it."""

    text: str
    trained: bool


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """The same text in as few segments as possible: without empty ones, and with neighbours of equal `trained` joined."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].trained == segment.trained:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.trained)
        elif segment.text:
            merged.append(segment)
    return merged


@dataclass(frozen=True)
class TokenizedSample:
    """T positions of one task: at position t the model reads `input_ids[t]` and is trained on `targets[t]`, unless that is -100."""

    task: int
    input_ids: NDArray[np.int32]  # [T]
    targets: NDArray[np.int32]  # [T]
    origin: str
    second: int = 0
    """Where the second text of a pair begins; it does not see the first. 0 for a single text."""

    @property
    def lengths(self) -> list[int]:
        """The positions of each text."""
        return [self.second, len(self.input_ids) - self.second] if self.second else [len(self.input_ids)]


@dataclass(frozen=True)
class Graded:
    """The reward of a sampled answer, and the mean and standard deviation of the rewards of its group."""

    reward: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """A whole rendered text: its ids [n], and which of them are trained as targets [n]."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    second: int = 0
    """Where the second text of a pair begins; 0 for a single text."""
    desirable: bool = True
    """The label of a labelled answer; true without one."""
    graded: Graded = Graded()
    """The reward of a sampled answer."""


def encode_segments(tokenizer: Tokenizer, conversations: Sequence[Sequence[Segment]]) -> list[Tokens]:
    """Tokens of many rendered conversations. Segments are encoded separately, so no token crosses the border of an answer."""
    bounded = [[piece for segment in segments for piece in _bounded(segment)] for segments in conversations]
    if not tokenizer.encodes_piecewise:
        return [_encode_whole(tokenizer, segments) for segments in bounded]
    ids = iter(_encode_batches(tokenizer, [segment.text for segments in bounded for segment in segments]))
    return [_join([(next(ids), segment.trained) for segment in segments]) for segments in bounded]


def _bounded(segment: Segment) -> Iterator[Segment]:
    """The segment; a very long one in pieces, cut after a line break that stands between two visible characters.

    Known tokenizers have no token across such a place. A text without such a place is cut anywhere.
    """
    start, text = 0, segment.text
    while len(text) - start > _MAX_CHARACTERS:
        places = [match.end() for match in _LINE_END.finditer(text, start + 1, start + _MAX_CHARACTERS)]
        stop = places[-1] if places else start + _MAX_CHARACTERS
        yield Segment(text[start:stop], segment.trained)
        start = stop
    yield Segment(text[start:], segment.trained) if start else segment


def _encode_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
    """Ids of each text, in batches of bounded size, because the library's encodings take about 400 bytes per token."""
    start = 0
    while start < len(texts):
        stop, size = start + 1, len(texts[start])
        while stop < len(texts) and size + len(texts[stop]) <= _MAX_CHARACTERS:
            size += len(texts[stop])
            stop += 1
        yield from tokenizer.encode_batch(texts[start:stop])
        start = stop


def _join(pieces: Sequence[tuple[NDArray[np.int32], bool]]) -> Tokens:
    ids = np.concatenate([ids for ids, _ in pieces]) if pieces else np.empty(0, np.int32)
    return Tokens(ids, np.repeat([trained for _, trained in pieces], [len(ids) for ids, _ in pieces]).astype(bool))


def _encode_whole(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Tokens:
    """For tokenizers that put a space before the first word: encode the text up to each border, and keep the new tokens.

    Where a token would cross the border, the next segment is encoded separately, without that space.
    """
    pieces: list[tuple[NDArray[np.int32], bool]] = []
    done: list[int] = []
    text = ""
    for segment in segments:
        text += segment.text
        upto = tokenizer.encode(text) if len(text) <= _MAX_CHARACTERS or not done else []
        ids = upto[len(done) :] if upto[: len(done)] == done else encode_inside(tokenizer, segment.text)
        pieces.append((np.asarray(ids, np.int32), segment.trained))
        done = done + ids
    return _join(pieces)


def encode_inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's tokens as they are inside a longer text: encoded after a character that does not merge with it."""
    if tokenizer.encodes_piecewise:
        return tokenizer.encode(text)
    for anchor in ("\n", ".", "x"):
        before, both = tokenizer.encode(anchor), tokenizer.encode(anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return tokenizer.encode(text)


@dataclass(frozen=True)
class Fitted:
    """The pieces of one tokenized record (one; several if it was split; or none), and what was done to it."""

    pieces: tuple[Tokens, ...]
    truncated: bool = False
    dropped: bool = False
    split: bool = False
    untrained: bool = False
    fim: bool = False
    problem: str | None = None


def split_without_loss(tokens: Tokens, max_length: int) -> tuple[Tokens, ...]:
    """All tokens in pieces of at most `max_length` positions; the last target of a piece is the first token of the next one.

    Every token but the first is a target exactly once.
    """
    length = len(tokens.ids) - 1
    return tuple(_cut(tokens, start, min(start + max_length, length)) for start in range(0, length, max_length))


def fit(tokens: Tokens, max_length: int, over_length: OverLength) -> Fitted:
    """Cut a conversation to at most `max_length` positions, that is `max_length + 1` tokens.

    Positions after the last trained target are left out, and so are pieces without a trained target.
    """
    length = _last_trained(tokens, 0, len(tokens.ids) - 1)
    if length == 0:
        return Fitted((), untrained=True)
    if length <= max_length:
        return Fitted((_cut(tokens, 0, length),))
    if over_length == "drop":
        return Fitted((), dropped=True)
    starts = range(0, length if over_length == "split" else 1, max_length)
    stops = [_last_trained(tokens, start, min(start + max_length, length)) for start in starts]
    pieces = tuple(_cut(tokens, start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start)
    truncated = over_length == "truncate"
    return Fitted(pieces, truncated=truncated, split=not truncated, untrained=not pieces)


def _last_trained(tokens: Tokens, start: int, stop: int) -> int:
    """The end of start..stop after its last position with a trained target; `start` if there is none."""
    found = np.flatnonzero(tokens.trained[start + 1 : stop + 1])
    return start + int(found[-1]) + 1 if len(found) else start


def _cut(tokens: Tokens, start: int, stop: int) -> Tokens:
    """Positions start..stop: their tokens and the target of the last one."""
    return Tokens(tokens.ids[start : stop + 1], tokens.trained[start : stop + 1])


def to_sample(tokens: Tokens, *, task: int, origin: str) -> TokenizedSample:
    """Shift by one: [7, 8, 9] with 8 and 9 trained -> input_ids [7, 8], targets [8, 9]. Each text of a pair is shifted on its own."""
    if tokens.second:
        parts = (slice(None, tokens.second), slice(tokens.second, None))
        first, second = (
            to_sample(Tokens(tokens.ids[part], tokens.trained[part]), task=task, origin=origin) for part in parts
        )
        ids = np.concatenate([first.input_ids, second.input_ids])
        targets = np.concatenate([first.targets, second.targets])
        return TokenizedSample(task, ids, targets, origin, len(first.input_ids))
    targets = np.where(tokens.trained[1:], tokens.ids[1:], np.int32(IGNORED)).astype(np.int32)
    return TokenizedSample(task, tokens.ids[:-1].astype(np.int32), targets, origin)
