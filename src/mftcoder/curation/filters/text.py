"""What a rule measures in a record's text: words, lines, repetition, refusals."""

import re
import zlib
from itertools import islice

from mftcoder.curation.example import Example


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
