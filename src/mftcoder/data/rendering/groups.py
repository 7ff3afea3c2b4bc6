"""Rollout records -> the answers of a group as tokens: one prompt, several sampled answers, and a reward for each.

Each answer becomes a sample of its own that keeps its reward, and the mean and the standard deviation of its group. Only the
tokens of the answers are trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from mftcoder.config.data import DataConfig
from mftcoder.config.section import LARGEST
from mftcoder.data.records.conversation import Conversation
from mftcoder.data.records.formats import parse_object
from mftcoder.data.rendering.pairs import answer_to, messages_of_field
from mftcoder.data.rendering.templates import Template, load_template, render
from mftcoder.data.rendering.tokenization import Fitted, Graded, Segment, Tokens, encode_segments
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError

ROUNDING = 1e-9
"""Rewards that differ by no more are equal: divided by its own deviation, the last digit of a number would be a whole advantage."""


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt, each a conversation, with the reward of each. Those that are not trained count in the mean only."""

    answers: tuple[Conversation, ...]
    rewards: tuple[float, ...]
    trained: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Characters."""
        return sum(answer.size for answer in self.answers)

    @property
    def content_hash(self) -> int:
        """64 bits over all answers, rewards and marks."""
        parts = zip(self.answers, self.rewards, self.trained, strict=True)
        text = ":".join(f"{answer.content_hash} {reward!r} {trained}" for answer, reward, trained in parts)
        return xxhash.xxh3_64_intdigest(text.encode())


def read_group(line: bytes, task: str, origin: str) -> Group:
    """The group on one line: `prompt`, `completions`, `rewards`, and `trained` if not all answers are. DataError with all problems."""
    record = parse_object(line)
    problems = [f"'{field}' is missing" for field in ("prompt", "completions", "rewards") if field not in record]
    if problems:
        raise DataError(*problems)
    texts, rewards = record["completions"], record["rewards"]
    trained: Any = record.get("trained", [True] * len(texts) if isinstance(texts, list) else None)
    for field, value, kind in (
        ("completions", texts, str),
        ("rewards", rewards, int | float),
        ("trained", trained, bool),
    ):
        if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
            problems.append(f"'{field}' must be a list of {_NAMES[field]}")
    problems = problems or _problems(texts, rewards, trained)
    if problems:
        raise DataError(*problems)
    prompt = messages_of_field(record, "prompt", "user")
    answers = [answer_to(prompt, text, record, task, origin) for text in texts]
    return Group(tuple(answers), tuple(map(float, rewards)), tuple(trained))


_NAMES = {"completions": "texts", "rewards": "numbers", "trained": "true or false"}


def _problems(texts: list[str], rewards: list[float], trained: list[bool]) -> list[str]:
    if len({len(texts), len(rewards), len(trained)}) > 1:
        return [f"{len(texts)} completions have {len(rewards)} rewards and {len(trained)} marks 'trained'"]
    if len(texts) < 2:
        return ["a group of one answer has no advantage: sample at least 2"]
    if not all(math.isfinite(reward) for reward in rewards):
        return ["a reward is not a finite number"]
    if max(map(abs, rewards)) > LARGEST:
        return [f"a reward is out of range: {max(rewards, key=abs):g}, at most {LARGEST:g}"]
    if blank := [str(number) for number, text in enumerate(texts, start=1) if not text.strip()]:
        return [f"completion {', '.join(blank)}: content is empty"]
    if max(rewards) - min(rewards) <= ROUNDING:
        return [f"all {len(rewards)} rewards are {rewards[0]:g}, so the group has no signal. Leave it out"]
    return [] if any(trained) else ["no answer of the group is trained. Leave it out"]


class Groups:
    """Reads and tokenizes the records of a task of kind grpo."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self.tokenizer, self.config = tokenizer, config
        self.template: Template = load_template(config, tokenizer)

    def read(self, line: bytes, *, format: str, task: str, origin: str) -> Group:
        return read_group(line, task, origin)

    def render(self, group: Group) -> Group:
        """The group itself, if all of its answers can be rendered."""
        for answer in group.answers:
            self._segments(answer)
        return group

    def _segments(self, answer: Conversation) -> list[Segment]:
        return render(answer, self.template, self.tokenizer)

    def fit(self, groups: Sequence[Group]) -> list[Fitted]:
        """The trained answers of each group. An answer that does not fit into a row is a problem of its record: cut, it would be another."""
        return [self._fit(group) for group in groups]

    def _fit(self, group: Group) -> Fitted:
        kept = [number for number, trained in enumerate(group.trained) if trained]
        mean, deviation = float(np.mean(group.rewards)), float(np.std(group.rewards))
        pieces = []
        rendered = [self._segments(group.answers[number]) for number in kept]
        for number, tokens in zip(kept, encode_segments(self.tokenizer, rendered), strict=True):
            stop = int(np.flatnonzero(tokens.trained)[-1]) + 1
            if stop - 1 > self.config.max_length:
                return Fitted(
                    (),
                    problem=f"completion {number + 1} and its prompt have {stop - 1} positions, and a row has {self.config.max_length}. Raise "
                    "data.max_length",
                )
            graded = Graded(group.rewards[number], mean, deviation)
            pieces.append(Tokens(tokens.ids[:stop], tokens.trained[:stop], graded=graded))
        return Fitted(tuple(pieces))
