"""The code in a completion: fenced blocks, stop words, the first complete block. Finds where it begins and ends; repairs nothing."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

# Possessive quantifiers, so that a long line costs linear and not quadratic time.
_FENCE = re.compile(r"^[ \t]*+```[ \t]*+([\w+#.-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+```|\Z)", re.DOTALL | re.MULTILINE)


def cut_at_stop_words(text: str, stop: Iterable[str]) -> str:
    """`text` up to the first of the stop words."""
    ends = [position for word in stop if (position := text.find(word)) >= 0]
    return text[: min(ends)] if ends else text


def fenced_blocks(text: str) -> list[str]:
    """The contents of ``` blocks, in order. The last one may lack its end, because the token limit may have cut it off."""
    return [match.group(2) for match in _FENCE.finditer(text)]


def fenced_code(text: str) -> list[tuple[str, str]]:
    """Language and content of each ``` block, in order; the language is empty where none is named."""
    return [(match.group(1), match.group(2)) for match in _FENCE.finditer(text)]


def best_block(text: str, name: str) -> str | None:
    """The first fenced block that mentions `name`, else the first one; None if there is none."""
    blocks = fenced_blocks(text)
    return next(
        (block for block in blocks if re.search(rf"\b{re.escape(name)}\b", block)), blocks[0] if blocks else None
    )


def first_code(text: str, stop: Sequence[str]) -> str:
    """The Python code in an answer as the Qwen contest's harness finds it: the first fenced block, else from the first `def` on.

    That harness ends generation at the first stop word, wherever it is, so text after it is ignored.
    """
    ends = [(position, position + len(word)) for word in stop if (position := text.find(word)) >= 0]
    written = text[: min(ends)[1]] if ends else text
    lines = written.split("\n")
    code = _first_block(lines) if "```" in written else _first_functions(lines)
    return cut_at_stop_words("".join(f"{line}\n" for line in code), stop)


def _first_block(lines: Sequence[str]) -> Iterator[str]:
    """The lines after the first line that begins with a fence, up to the next that ends with one."""
    inside = itertools.dropwhile(lambda line: not line.startswith("```"), lines)
    for line in itertools.islice(inside, 1, None):
        if line.rstrip().endswith("```"):
            yield line.rstrip()[:-3]
            return
        yield line


def _first_functions(lines: Sequence[str]) -> Iterator[str]:
    """The lines from the first unindented `def` up to the next unindented line that is not a `def`."""
    functions = itertools.dropwhile(lambda line: not line.startswith("def "), lines)
    return itertools.takewhile(lambda line: not line[:1].strip() or line.startswith("def"), functions)


def cut_after_block(text: str, depth: int = 1, *, single_quotes: bool = False) -> str | None:
    """`text` up to the brace that closes the `depth` blocks that are open at its start; None if there is no such brace.

    Braces in strings, characters and comments do not count: `return "}"; }` ends at the second one. `single_quotes` is for
    JavaScript, where single quotes enclose strings: `'//'` is not a comment.
    """
    for match in (_BRACES_OF_JAVASCRIPT if single_quotes else _BRACES).finditer(text):
        if match.group() in "{}":
            depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[: match.end()]
    return None


def closes_block(lines: str, depth: int = 1, *, single_quotes: bool = False) -> bool:
    """True if these lines close the blocks whatever follows: no string over several lines is open before the brace."""
    block = cut_after_block(lines, depth, single_quotes=single_quotes)
    pattern = _BRACES_OF_JAVASCRIPT if single_quotes else _BRACES
    return block is not None and not re.search(r"[\"`]", pattern.sub("", block))


_COMMENTS_AND_TEXTS = r"//[^\n]*|/\*.*?(?:\*/|\Z)" r"|\"(?:\\.|[^\"\\\n])*\"" r"|`(?:\\.|[^`\\])*`"
_CHARACTER = r"'(?:\\(?:u\{?[0-9a-fA-F]+\}?|x[0-9a-fA-F]{2}|.)|[^'\\\n])'"  # a lifetime in Rust has one quote
_BRACES = re.compile(rf"{_COMMENTS_AND_TEXTS}|{_CHARACTER}|[{{}}]", re.DOTALL)
_BRACES_OF_JAVASCRIPT = re.compile(rf"{_COMMENTS_AND_TEXTS}|'(?:\\.|[^'\\\n])*'|[{{}}]", re.DOTALL)
