"""In which language people speak in a record: py3langid on the lines that are prose."""

import re
from functools import cache
from typing import Any

from mftcoder.curation.example import Example, fenced_blocks

LEAST_BYTES = 60
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
    if len(prose.encode(errors="replace")) < LEAST_BYTES:
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
