"""Preference records -> two texts with one prompt, as tokens: the chosen and the rejected answer, or an answer and one to another prompt.

A pair becomes one sample, so that both texts share a row. Only the tokens of the two answers are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from mftcoder.config.data import DataConfig
from mftcoder.data.records.conversation import Conversation, Message, content_hash, make_conversation
from mftcoder.data.records.formats import parse_object, turns, with_system
from mftcoder.data.rendering.templates import Template, load_template, render
from mftcoder.data.rendering.tokenization import Fitted, Segment, Tokens, encode_segments
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that differ in the last answer only; the second is None in a labelled record, which has one."""

    first: Conversation
    second: Conversation | None
    desirable: bool = True  # the label; true in a pair

    @property
    def size(self) -> int:
        """Characters."""
        return self.first.size + (self.second.size if self.second else self.first.size)

    @property
    def content_hash(self) -> int:
        """64 bits over both texts and the label."""
        second = self.second.content_hash if self.second else 0
        return xxhash.xxh3_64_intdigest(f"{self.first.content_hash}:{second}:{self.desirable}".encode())


def read_pair(line: bytes, task: str, origin: str) -> Pair:
    """The pair on one line: `chosen` and `rejected`, each a list of turns, or an answer after `prompt`. DataError with all problems."""
    record = parse_object(line)
    problems: list[str] = []
    sides = [_side(record, field, problems) for field in ("chosen", "rejected")]
    if problems:
        raise DataError(*dict.fromkeys(problems))  # those of the prompt once
    chosen, rejected = _conversations(sides, record, task, origin)
    if content_hash(chosen.messages[:-1]) != content_hash(rejected.messages[:-1]):
        raise DataError("the prompts differ: 'chosen' and 'rejected' must be equal but for their last answer")
    if chosen.content_hash == rejected.content_hash:
        raise DataError("'chosen' and 'rejected' are equal")
    return Pair(chosen, rejected)


def _conversations(sides: Sequence[list[Message]], record: Record, task: str, origin: str) -> list[Conversation]:
    """The conversations of `chosen` and `rejected`. DataError with all problems, each with its side or sides."""
    made, problems = [], dict[str, list[str]]()
    for field, side in zip(("chosen", "rejected"), sides, strict=True):
        try:
            made.append(_conversation(side, record, task, origin))
        except DataError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(field)
    if problems:
        raise DataError(*(f"{' and '.join(fields)}: {problem}" for problem, fields in problems.items()))
    return made


def read_labelled(line: bytes, task: str, origin: str) -> Pair:
    """The labelled answer on one line: a chat, or `prompt` and `completion`, and a `label`. DataError with all problems."""
    record = parse_object(line)
    label = record.get("label")
    if "label" not in record:
        found = "; a pair of chosen and rejected is for kind: dpo" if "chosen" in record else ""
        raise DataError(f"'label' is missing{found}")
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise DataError(f"'label' is {label!r}, neither true (desirable) nor false (undesirable)")
    messages = _turns_of(record, "messages" if "messages" in record else "completion")
    return Pair(_conversation(messages, record, task, origin), None, bool(label))


def _side(record: Record, field: str, problems: list[str]) -> list[Message]:
    try:
        return _turns_of(record, field)
    except DataError as error:
        problems += error.problems
        return []


def _turns_of(record: Record, field: str) -> list[Message]:
    """The messages of one side: `prompt`, if there is one, then this field; the field alone if it repeats the prompt."""
    prompt = messages_of_field(record, "prompt", "user") if "prompt" in record else []
    side = messages_of_field(record, field, "assistant")
    asked, repeated = _without_system(prompt), _without_system(side)
    if not asked or not repeated or repeated[0].role == "assistant":
        return [*prompt, *side]
    if [(one.role, one.content) for one in repeated[: len(asked)]] != [(one.role, one.content) for one in asked]:
        raise DataError(f"'{field}' is a whole chat, and it does not begin with 'prompt'. Leave 'prompt' out")
    return side if len(side) > len(repeated) else [*prompt, *repeated[len(asked) :]]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [one for one in messages if one.role != "system"]


def answer_to(prompt: Sequence[Message], text: str, record: Record, task: str, origin: str) -> Conversation:
    """A prompt with one answer, which is trained. DataError if it is no conversation."""
    return _conversation([*prompt, Message("assistant", text, True)], record, task, origin)


def messages_of_field(record: Record, field: str, role: Any) -> list[Message]:
    """The turns in a field, or its text as one turn of this role."""
    value = record.get(field)
    if isinstance(value, str):
        return [Message(role, value, role == "assistant")]
    try:
        return turns(record, field)
    except DataError as error:
        raise DataError(
            *(problem if f"'{field}'" in problem else f"{field}: {problem}" for problem in error.problems)
        ) from error


def _conversation(messages: Sequence[Message], record: Record, task: str, origin: str) -> Conversation:
    """The conversation, trained on its last answer. DataError if it does not end with one, or has nothing before it."""
    identity = record.get("id", "")
    messages = with_system(record, messages)
    made = make_conversation(messages, id="" if identity is None else str(identity), task=task, origin=origin)
    if made.messages[-1].role != "assistant":
        raise DataError("the last turn must be the assistant's answer")
    if len(made.messages) < 2:
        raise DataError("there is no prompt before the answer")
    trained = [Message(one.role, one.content, False) for one in made.messages[:-1]]
    last = made.messages[-1]
    return Conversation(made.id, task, (*trained, Message(last.role, last.content, True)), origin)


class Pairs:
    """Reads and tokenizes the records of a preference task. `labelled`: records hold one answer and a label (KTO)."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig, *, labelled: bool):
        self.tokenizer, self.config, self.labelled = tokenizer, config, labelled
        self.template: Template = load_template(config, tokenizer)

    def read(self, line: bytes, *, format: str, task: str, origin: str) -> Pair:
        return (read_labelled if self.labelled else read_pair)(line, task, origin)

    def render(self, pair: Pair) -> Pair:
        """The pair itself, if both of its texts can be rendered."""
        for side in filter(None, (pair.first, pair.second)):
            self._segments(side)
        return pair

    def _segments(self, side: Conversation) -> list[Segment]:
        return render(side, self.template, self.tokenizer)

    def fit(self, pairs: Sequence[Pair]) -> list[Fitted]:
        """Both texts of each pair, cut so that they share a row.

        A labelled answer is followed by its prompt with the answer of the record before it, which KTO's estimate of the divergence needs.
        """
        others = [pair.second or _mismatched(pair, pairs[number - 1]) for number, pair in enumerate(pairs)]
        sides = [side for pair, other in zip(pairs, others, strict=True) for side in (pair.first, other)]
        tokens = encode_segments(self.tokenizer, [self._segments(side) for side in sides])
        return [
            self._fit(pair, first, second) for pair, first, second in zip(pairs, tokens[::2], tokens[1::2], strict=True)
        ]

    def _fit(self, pair: Pair, first: Tokens, second: Tokens) -> Fitted:
        first, second = _without_tail(first), _without_tail(second)
        row, lengths = self.config.max_length, (len(first.ids) - 1, len(second.ids) - 1)
        if sum(lengths) <= row:
            return Fitted((_joined(first, second, pair.desirable),))
        limits = (max(row - lengths[1], row // 2), row - min(lengths[0], max(row - lengths[1], row // 2)))
        prompts = [int(np.flatnonzero(side.trained)[0]) for side in (first, second)]
        short = [(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True) if prompt > limit]
        if short:
            prompt, limit = short[0]
            return Fitted(
                (),
                problem=f"its prompt has {prompt} tokens, and each of the two texts that share a row of {row} positions has room "
                f"for {limit}. Raise data.max_length",
            )
        if self.config.over_length != "truncate":
            return Fitted((), dropped=True)
        first, second = _cut(first, limits[0]), _cut(second, limits[1])
        if pair.second and np.array_equal(first.ids, second.ids):  # they differ beyond the cut: nothing to prefer
            return Fitted((), dropped=True)
        return Fitted((_joined(first, second, pair.desirable),), truncated=True)


def _mismatched(pair: Pair, other: Pair) -> Conversation:
    """The prompt of `pair` with the answer of `other`."""
    first = pair.first
    return Conversation(first.id, first.task, (*first.messages[:-1], other.first.messages[-1]), first.origin)


def _without_tail(tokens: Tokens) -> Tokens:
    """Without the text after the answer, which is not trained."""
    stop = int(np.flatnonzero(tokens.trained)[-1]) + 1
    return Tokens(tokens.ids[:stop], tokens.trained[:stop])


def _cut(tokens: Tokens, positions: int) -> Tokens:
    return Tokens(tokens.ids[: positions + 1], tokens.trained[: positions + 1])


def _joined(first: Tokens, second: Tokens, desirable: bool) -> Tokens:
    return Tokens(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.trained, second.trained]),
        second=len(first.ids),
        desirable=desirable,
    )
