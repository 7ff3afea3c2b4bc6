"""What the methods share: a draft of a record, where drafts and drops are collected, and a question that may bring neither."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash

from mftcoder.curation.example import Drop
from mftcoder.curation.teacher.endpoint import Messages, Reply
from mftcoder.curation.teacher.teacher import Teacher, UnansweredError

Order = tuple[int, ...]
"""Where a draft stands in the output, whenever it was ready."""


@dataclass(frozen=True)
class Draft:
    """A record that is not checked yet. `facts` go into its field `synthesis`, `fields` beside its turns."""

    task: str
    question: str
    answer: str
    origin: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """64 bits over question and answer."""
        return f"{self.task}-{xxhash.xxh3_64_hexdigest(f'{len(self.question)}:{self.question}{self.answer}'.encode())}"

    def as_record(self) -> dict[str, Any]:
        """The record, in the dialect of the published exercise set."""
        turns = [{"role": "human", "content": self.question}, {"role": "bot", "content": self.answer}]
        head = {"id": self.id, "data_name": self.task, "chat_rounds": turns}
        return {**head, **self.fields, "synthesis": {**self.facts, "origin": self.origin}}


@dataclass(frozen=True)
class Dropped:
    """Something that became no record: at which step, by which rule, from where."""

    task: str
    step: str
    drop: Drop
    origin: str

    def as_record(self) -> dict[str, Any]:
        head = {"task": self.task, "step": self.step, "rule": self.drop.rule, "value": self.drop.value}
        return {**head, "origin": self.origin, **self.drop.details}


class DroppedError(Exception):
    """This became no record."""

    def __init__(self, step: str, rule: str, value: float | str, **details: Any):
        super().__init__(f"{step}: {rule}")
        self.step, self.drop = step, Drop(rule, value, details)


class Collected:
    """Drafts and drops of all items, in the order of the input whichever was ready first."""

    def __init__(self) -> None:
        self._drafts: list[tuple[Order, Draft]] = []
        self._dropped: list[tuple[Order, Dropped]] = []

    def keep(self, order: Order, draft: Draft) -> None:
        self._drafts.append((order, draft))

    def drop(self, order: Order, task: str, error: DroppedError, origin: str) -> None:
        self._dropped.append((order, Dropped(task, error.step, error.drop, origin)))

    @contextmanager
    def dropping(self, order: Order, task: str, origin: str) -> Iterator[None]:
        """A DroppedError ends the block, and is noted."""
        try:
            yield
        except DroppedError as error:
            self.drop(order, task, error, origin)

    @property
    def drafts(self) -> list[Draft]:
        return [draft for _, draft in sorted(self._drafts, key=lambda pair: pair[0])]

    @property
    def dropped(self) -> list[Dropped]:
        return [dropped for _, dropped in sorted(self._dropped, key=lambda pair: pair[0])]


class Method(Protocol):
    """A way to make records. `steps` are the names under which it drops, in their order."""

    steps: tuple[str, ...]
    items: list[Any]

    async def make(self, number: int, collected: Collected) -> None:
        """Make the records of item `number`."""
        ...


async def ask(teacher: Teacher, step: str, messages: Messages | str, *, sample: int = 0) -> str:
    """The answer; DroppedError if there is none, or if it was cut."""
    reply = await reply_of(teacher, step, messages, sample=sample)
    if reply.is_cut:
        raise DroppedError(step, "cut", len(reply.text), finish=reply.finish)
    return reply.text.strip()


async def reply_of(teacher: Teacher, step: str, messages: Messages | str, *, sample: int = 0) -> Reply:
    """The reply, which may be cut; DroppedError if there is none."""
    try:
        return await teacher.ask(messages, sample=sample)
    except UnansweredError as error:
        raise DroppedError(step, "unanswered", error.problem) from None


def tagged(text: str, tag: str, *, is_cut: bool = False) -> list[str]:
    """The texts between `<tag>` and `</tag>`, without empty ones. The last one may lack its end, unless the whole text was cut."""
    end_of_text = "" if is_cut else r"|\Z"
    found = re.findall(rf"<{tag}>(.*?)(?:</{tag}>|(?=<{tag}>){end_of_text})", text, re.DOTALL | re.IGNORECASE)
    return [inner.strip() for inner in found if inner.strip()]
