"""The code within what a model wrote: fenced blocks, stop words, the first complete block.

Goes in: text. Comes out: text. Nothing here repairs code; it only decides where the answer begins and ends.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

# Possessive, so that a line without an end costs its length and not the square of it.
_FENCE = re.compile(r"^[ \t]*+```[ \t]*+([\w+#.-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+```|\Z)", re.DOTALL | re.MULTILINE)


def cut_at_stop_words(text: str, stop: Iterable[str]) -> str:
    """`text` up to the first of the stop words."""
    ends = [position for word in stop if (position := text.find(word)) >= 0]
    return text[: min(ends)] if ends else text


def fenced_blocks(text: str) -> list[str]:
    """The contents of ``` blocks in order; a last one that is not closed counts, for the token limit may have cut it."""
    return [match.group(2) for match in _FENCE.finditer(text)]


def best_block(text: str, name: str) -> str | None:
    """The first fenced block that mentions `name`, else the first one; None without any."""
    blocks = fenced_blocks(text)
    return next(
        (block for block in blocks if re.search(rf"\b{re.escape(name)}\b", block)), blocks[0] if blocks else None
    )


def first_code(text: str, stop: Sequence[str]) -> str:
    """The Python code in an answer, as the Qwen contest finds it: the first fenced block, else from the first `def` on.

    Its generation ends with the first stop word, wherever that stands; what follows is not read.
    """
    ends = [(position, position + len(word)) for word in stop if (position := text.find(word)) >= 0]
    written = text[: min(ends)[1]] if ends else text
    lines = written.split("\n")
    code = _first_block(lines) if "```" in written else _first_functions(lines)
    return cut_at_stop_words("".join(f"{line}\n" for line in code), stop)


def _first_block(lines: Sequence[str]) -> Iterator[str]:
    """The lines between the first that begins with a fence and the next that ends with one."""
    inside = itertools.dropwhile(lambda line: not line.startswith("```"), lines)
    for line in itertools.islice(inside, 1, None):
        if line.rstrip().endswith("```"):
            yield line.rstrip()[:-3]
            return
        yield line


def _first_functions(lines: Sequence[str]) -> Iterator[str]:
    """From the first `def` in the first column up to a line there that defines nothing."""
    functions = itertools.dropwhile(lambda line: not line.startswith("def "), lines)
    return itertools.takewhile(lambda line: not line[:1].strip() or line.startswith("def"), functions)


def cut_after_block(text: str, depth: int = 1, *, single_quotes: bool = False) -> str | None:
    """`text` up to the brace that closes the `depth` blocks it began inside of; None if that brace is not there.

    Braces in strings, characters and comments do not count: `return "}"; }` ends at the second one. `single_quotes` is for
    JavaScript, where they hold whole strings: `'//'` opens no comment.
    """
    for match in (_BRACES_OF_JAVASCRIPT if single_quotes else _BRACES).finditer(text):
        if match.group() in "{}":
            depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[: match.end()]
    return None


def closes_block(lines: str, depth: int = 1, *, single_quotes: bool = False) -> bool:
    """Whether whole lines close those blocks, whatever comes next: no string of several lines is open before the brace."""
    block = cut_after_block(lines, depth, single_quotes=single_quotes)
    pattern = _BRACES_OF_JAVASCRIPT if single_quotes else _BRACES
    return block is not None and not re.search(r"[\"`]", pattern.sub("", block))


_COMMENTS_AND_TEXTS = r"//[^\n]*|/\*.*?(?:\*/|\Z)" r"|\"(?:\\.|[^\"\\\n])*\"" r"|`(?:\\.|[^`\\])*`"
_CHARACTER = r"'(?:\\(?:u\{?[0-9a-fA-F]+\}?|x[0-9a-fA-F]{2}|.)|[^'\\\n])'"  # Rust's lifetimes have one quote
_BRACES = re.compile(rf"{_COMMENTS_AND_TEXTS}|{_CHARACTER}|[{{}}]", re.DOTALL)
_BRACES_OF_JAVASCRIPT = re.compile(rf"{_COMMENTS_AND_TEXTS}|'(?:\\.|[^'\\\n])*'|[{{}}]", re.DOTALL)
