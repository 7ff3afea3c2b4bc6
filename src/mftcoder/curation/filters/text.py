"""What a rule measures in a record's text: words, lines, repetition, refusals, the language of its prose."""

import re
import zlib
from functools import cache
from itertools import islice
from typing import Any

from mftcoder.curation.example import Example, fenced_blocks


def question_words(example: Example) -> int | None:
    return None if example.conversation.is_text else len(example.question.split())


def answer_words(example: Example) -> int:
    return len(example.answer.split())


LEAST_COMPRESSED = 512


def compression_ratio(example: Example) -> float | None:
    data = example.answer.encode()
    return len(zlib.compress(data, 1)) / len(data) if len(data) >= LEAST_COMPRESSED else None


LEAST_LINES = 10


def repeated_lines(example: Example) -> float | None:
    """Only lines with three letters or digits count: every language repeats its closing brackets."""
    lines = [line for line in map(str.strip, example.answer.split("\n")) if sum(map(str.isalnum, line[:40])) >= 3]
    return (len(lines) - len(set(lines))) / len(lines) if len(lines) >= LEAST_LINES else None


def alphanumeric_share(example: Example) -> float:
    text = example.answer
    return sum(map(str.isalnum, text)) / max(1, len(text))


def longest_line(example: Example) -> int:
    return max(map(len, example.answer.split("\n")))


_SPEAKS_AS_AI = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|作为一个?(?:人工智能|AI|语言模型)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(  # of how an answer begins
    r"\W*+(?:"
    r"(?:i['’]?m |i am )?(?:very |really |so )?(?:sorry|afraid)\b"
    r"|(?:i |we |my )?apolog(?:ize|ise|ies)\b"
    r"|(?:unfortunately,? )?i (?:cannot|can['’]?t|can not|am unable to|am not able to|won['’]?t) "
    r"|很?抱歉|对不起|我(?:无法|不能)"
    r")",
    re.IGNORECASE,
)


def refusals(example: Example) -> int:
    messages = example.conversation.messages
    return sum([_refuses(message.content[:300]) for message in messages if message.role == "assistant"])


def _refuses(beginning: str) -> bool:
    if _REFUSAL.match(beginning):
        return True
    is_possible = "as a" in beginning.lower() or "作为" in beginning  # most texts have neither, and the pattern is slow
    return is_possible and bool(_SPEAKS_AS_AI.search(beginning))


NGRAM, LEAST_NGRAMS = 10, 50
_MOST_WORDS = 200_000


def repeated_ngrams(example: Example) -> float | None:
    """Of the first 200,000 words, which bounds the memory."""
    words = example.answer.split(None, _MOST_WORDS)[:_MOST_WORDS]
    total = len(words) - NGRAM + 1
    if total < LEAST_NGRAMS:
        return None
    return 1 - len(set(zip(*(islice(words, start, None) for start in range(NGRAM)), strict=False))) / total


LEAST_PROSE_BYTES = 60
_MOST_CHARACTERS = 5000
_CHINESE = {"wuu": "zh", "yue": "zh"}
"""Kinds of Chinese that short texts are taken for."""
_PROSE_LINE = re.compile(r"^[^{}();=<>\[\]_\\/@#$|`\n]*$", re.MULTILINE)
_WORDS = re.compile(r"[^\W\d]+(?: [^\W\d]+){3}|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{4}")
"""Four words with a blank between them, or four characters of a script without blanks."""


def prose_language(example: Example) -> str | None:
    """The code of ISO 639-1; None for a record with less than 60 bytes of prose."""
    texts = [_outside_of_fences(text)[:_MOST_CHARACTERS] for text in (example.question, example.answer)]
    lines = (line[0].strip() for text in texts for line in _PROSE_LINE.finditer(text))
    prose = "\n".join(line for line in lines if _WORDS.search(line))
    if len(prose.encode(errors="replace")) < LEAST_PROSE_BYTES:
        return None
    found = str(_identify()(prose)[0])
    return _CHINESE.get(found, found)


def _outside_of_fences(text: str) -> str:
    start, parts = 0, []
    for block in fenced_blocks(text):
        parts.append(text[start : block.start])
        start = text.find(block.code, block.start) + len(block.code)
    return "\n".join((*parts, text[start:]))


@cache
def _identify() -> Any:
    import py3langid

    return py3langid.classify
