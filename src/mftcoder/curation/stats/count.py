"""Blocks of records -> counts of a set: lengths, roles, languages, what a row's length would cut. All of them add up in any order.

Which records repeat each other is left to summary.py; a block leaves its sketches on disk for that.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import GrpoKind, PreferenceKind, PretrainKind, TaskKind
from mftcoder.config.problems import one_line
from mftcoder.config.section import LARGEST_ROW
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.duplicates.sketches import sketch
from mftcoder.curation.example import Example
from mftcoder.curation.pipeline.workers import Tools
from mftcoder.curation.statistics import Statistics
from mftcoder.data.records.conversation import Conversation, Message
from mftcoder.data.records.files import Block
from mftcoder.data.records.formats import read_record
from mftcoder.data.rendering.groups import Groups
from mftcoder.data.rendering.kinds import Conversations, Records, records_of
from mftcoder.data.rendering.tokenization import Tokens, encode_segments
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import DataError

COUNTING = "counting"
"""The name of the tool in the workers."""
_PROBLEMS_SHOWN = 5


@dataclass
class Counts:
    """Of one set. `lengths` maps a unit (words, tokens, trained tokens) to the number of records of each length."""

    statistics: Statistics = field(default_factory=Statistics)
    unusable: int = 0
    problems: list[str] = field(default_factory=list)  # the first ones, with their origin
    bytes: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    cut: Counter[str] = field(default_factory=Counter)  # records, tokens and trained tokens beyond max_length

    def add(self, unit: str, length: int) -> None:
        self.lengths.setdefault(unit, Counter())[length] += 1

    def merge(self, other: "Counts") -> None:
        self.statistics.merge(other.statistics)
        self.unusable += other.unusable
        self.problems = [*self.problems, *other.problems][:_PROBLEMS_SHOWN]
        self.bytes += other.bytes
        self.roles.update(other.roles)
        self.cut.update(other.cut)
        for unit, lengths in other.lengths.items():
            self.lengths.setdefault(unit, Counter()).update(lengths)


@dataclass(frozen=True)
class Counting:
    """What every process needs: how records are compared, and how they are tokenized. Without a tokenizer words are counted only."""

    compared: DedupConfig
    tokenizer_name: str | None
    data: DataConfig
    max_length: int | None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded in the process that counts."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
        assert self.tokenizer_name is not None
        return load_tokenizer(self.tokenizer_name)

    @cached_property
    def _records(self) -> dict[tuple[TaskKind, bool], Records]:
        return {}

    def records_of(self, kind: TaskKind, *, whole: bool = True) -> Records:
        """The reader of this kind of task; its samples are `whole`, or cut to max_length."""
        if (kind, whole) not in self._records:
            limit = {"max_length": LARGEST_ROW if whole else self.max_length, "over_length": "truncate"}
            self._records[kind, whole] = records_of(kind, self.tokenizer, self.data.model_copy(update=limit))
        return self._records[kind, whole]


@dataclass(frozen=True)
class CountJob:
    """Count a block, and write the sketches of its records."""

    task: str
    kind: TaskKind
    format: str
    path: str
    block: Block
    target: Path  # of the sketches, without an ending

    def run(self, tools: Tools) -> Counts:
        counting: Counting = tools[COUNTING]
        counts = Counts()
        pairs: list[tuple[int, Example]] = []
        rendered: list[Any] = []
        for number, line in self.block.lines():
            origin = f"{self.path}:{number}"
            try:
                example, shown = self._read(counting, line, origin)
            except DataError as error:
                counts.unusable += 1
                counts.problems = [*counts.problems, *(f"{origin}: {one_line(text)}" for text in error.problems)]
                counts.problems = counts.problems[:_PROBLEMS_SHOWN]
                continue
            pairs.append((number, example))
            rendered.append(shown)
            _count(counts, example)
        sketch(pairs, counting.compared).save(self.target)
        if counting.tokenizer_name is not None:
            _count_tokens(counts, counting, self.kind, rendered)
        return counts

    def _read(self, counting: Counting, line: bytes, origin: str) -> tuple[Example, Any]:
        """The record, and its text in the template if tokens are counted."""
        given = {"format": self.format, "task": self.task, "origin": origin}
        if isinstance(self.kind, PretrainKind):
            document = counting.records_of(self.kind).read(line, **given)
            messages = tuple(Message("text", text, True) for text in document.texts)
            return Example(Conversation("", self.task, messages, origin), line), document
        if isinstance(self.kind, PreferenceKind):
            pair = counting.records_of(self.kind).read(line, **given)
            messages = (*pair.first.messages, *(pair.second.messages[-1:] if pair.second else ()))
            return Example(Conversation("", self.task, messages, origin), line), pair
        if isinstance(self.kind, GrpoKind):
            group = counting.records_of(self.kind).read(line, **given)
            answers = [answer.messages[-1] for answer in group.answers[1:]]
            return Example(Conversation("", self.task, (*group.answers[0].messages, *answers), origin), line), group
        conversation = read_record(line, **given)
        if counting.tokenizer_name is None:
            return Example(conversation, line), None
        return Example(conversation, line), counting.records_of(self.kind).render(conversation)


def _count(counts: Counts, example: Example) -> None:
    messages = example.conversation.messages
    counts.statistics.add(example)
    counts.bytes += sum(len(message.content.encode(errors="surrogatepass")) for message in messages)
    counts.roles.update(message.role for message in messages)
    counts.add("words", sum(len(message.content.split()) for message in messages))


def _count_tokens(counts: Counts, counting: Counting, kind: TaskKind, rendered: Sequence[Any]) -> None:
    whole = list(_whole(counting.records_of(kind), rendered))
    for tokens in filter(None, whole):
        counts.add("tokens", len(tokens.ids))
        counts.add("trained tokens", int(tokens.trained.sum()))
    if counting.max_length is None or isinstance(kind, PretrainKind):
        return  # documents run on or are split: nothing of them is cut
    for all_tokens, kept in zip(whole, counting.records_of(kind, whole=False).fit(rendered), strict=True):
        if all_tokens is not None and (kept.truncated or kept.problem):
            left = sum(len(piece.ids) for piece in kept.pieces)
            left_trained = sum(int(piece.trained.sum()) for piece in kept.pieces)
            lost = {
                "tokens": len(all_tokens.ids) - left,
                "trained tokens": int(all_tokens.trained.sum()) - left_trained,
            }
            counts.cut.update({"records": 1, **lost})


def _whole(records: Records, rendered: Sequence[Any]) -> Iterator[Tokens | None]:
    """All tokens of each record; None for one without any."""
    if isinstance(records, Conversations):
        yield from encode_segments(records.tokenizer, rendered)
        return
    for fitted in records.fit(rendered):
        if isinstance(records, Groups):
            of_all = [piece.ids for piece in fitted.pieces], [piece.trained for piece in fitted.pieces]
            yield Tokens(np.concatenate(of_all[0]), np.concatenate(of_all[1])) if fitted.pieces else None
            continue
        first, *rest = fitted.pieces or (None,)  # each piece begins with the last token of the one before it
        if first is None:
            yield None
            continue
        ids = np.concatenate([first.ids, *(piece.ids[1:] for piece in rest)])
        yield Tokens(ids, np.concatenate([first.trained, *(piece.trained[1:] for piece in rest)]))
