"""What is in a set of records: counts, lengths, turns, languages, licences. Sums only, so parts add up in any order."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

from mftcoder.curation.example import Example

_LICENCE_KEYS = ("license", "licence", "licenses", "repo_license")
_SYNONYMS = {"py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "c++": "cpp", "golang": "go", "sh": "bash", "shell": "bash", "c#": "csharp", "cs": "csharp", "rs": "rust"}  # fmt: skip
_NAME = re.compile(r"[a-z][a-z0-9+#._-]{0,20}")


@dataclass
class Statistics:
    """Counters of a set of records. A length of n characters is counted under the smallest power of two that is not below it."""

    records: int = 0
    messages: int = 0
    question_characters: int = 0
    answer_characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def add(self, example: Example) -> None:
        messages = example.conversation.messages
        asked = answered = turns = 0
        for message in messages:
            if message.role in ("assistant", "text"):
                answered += len(message.content)
                turns += 1
            else:
                asked += len(message.content)
        self.records += 1
        self.messages += len(messages)
        self.question_characters += asked
        self.answer_characters += answered
        self.lengths[1 << max(0, asked + answered - 1).bit_length()] += 1
        self.turns[turns] += 1
        for name in {language_name(block.language) for block in example.blocks} or ("no fenced code",):
            self.languages[name] += 1
        if b"licen" in example.line:
            self.licences[_licence(example.line)] += 1

    def without(self, part: "Statistics") -> "Statistics":
        """The counts of what is left if a part of the records is taken away."""
        return Statistics(**{name: count - getattr(part, name) for name, count in vars(self).items()})

    def merge(self, other: "Statistics") -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def as_json(self) -> dict[str, object]:
        """Plain values, in a fixed order: by length and turns, else the most frequent first."""
        return {
            "records": self.records,
            "messages": self.messages,
            "question_characters": self.question_characters,
            "answer_characters": self.answer_characters,
            "lengths": {str(size): count for size, count in sorted(self.lengths.items())},
            "turns": {str(number): count for number, count in sorted(self.turns.items())},
            "languages": dict(ordered(self.languages)),
            "licences": dict(ordered(self.licences)),
        }

    @classmethod
    def from_json(cls, value: dict) -> "Statistics":
        numbers = {
            name: Counter({int(key): count for key, count in value[name].items()}) for name in ("lengths", "turns")
        }
        names = {name: Counter(value[name]) for name in ("languages", "licences")}
        return cls(**{**value, **numbers, **names})


def ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, equal ones by name: the same order whichever part was counted first."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


@lru_cache(1024)
def language_name(word: str) -> str:
    """The language that a fence names, under one spelling."""
    word = _SYNONYMS.get(word, word)
    if not word:
        return "unnamed"
    return word if _NAME.fullmatch(word) else "other"


def _licence(line: bytes) -> str:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "unknown"
    value = next((record[key] for key in _LICENCE_KEYS if record.get(key)), None)
    if isinstance(value, list):
        value = " and ".join(sorted(map(str, value)))
    return str(value)[:60] if value else "unknown"
