"""From what a model wrote to the one block of code in it. What is no clean answer is refused, with the reason.

Characters that show something else than they are (bidirectional marks, invisible characters, letters of another script in code) are
refused unless the file has them already.
"""

import io
import re
import tokenize
import unicodedata
from collections.abc import Iterable

from mftcoder.assistant.model import Written
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.example import fenced_blocks
from mftcoder.curation.statistics import language_name

MOST_CHARACTERS = 200_000
MOST_PROSE = 20_000
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_CODE_WORDS = frozenset({"diff", "patch"})


def checked_size(reply: Written) -> str:
    """The text of a reply that is neither empty, nor cut, nor huge."""
    refuse_size(reply.text)
    if reply.is_cut:
        raise RefusedAnswer("cut", "The answer was cut at the token limit.")
    return reply.text.replace("\r\n", "\n")


def refuse_size(text: str) -> None:
    """Refuse a text that is empty or huge."""
    if not text.strip():
        raise RefusedAnswer("empty", "The answer is empty.")
    if len(text) > MOST_CHARACTERS:
        raise RefusedAnswer("too_long", f"The answer has {len(text):,} characters, more than {MOST_CHARACTERS:,}.")


def code_of(reply: Written, language: str, known: str = "", *, diffs: bool = False) -> tuple[str, str]:
    """The code of the one block in a reply, and the block's language; `known` is the text whose unusual characters are allowed."""
    text = checked_size(reply)
    blocks = [block for block in fenced_blocks(text) if block.code.strip()]
    if not blocks:
        raise RefusedAnswer("no_code", "The answer has no code block. Write the code between ``` lines.")
    if len(blocks) > 1:
        raise RefusedAnswer("several_blocks", f"The answer has {len(blocks)} code blocks. Write exactly one.")
    [block] = blocks
    if not block.is_closed:
        raise RefusedAnswer("open_fence", "The code block is not closed by a line of ```.")
    named = language_name(block.language)
    allowed = {language, "unnamed"} | (_CODE_WORDS if diffs else set())
    if named not in allowed:
        raise RefusedAnswer("wrong_language", f"The code block is in {named}, not in {language}.")
    refuse_hidden(block.code, known)
    code = block.code if block.code.endswith("\n") else f"{block.code}\n"
    return code, "diff" if named in _CODE_WORDS else language


def prose_of(reply: Written) -> str:
    """A reply that is shown as it is: no control characters, which a terminal would obey."""
    text = checked_size(reply)
    if len(text) > MOST_PROSE:
        raise RefusedAnswer("too_long", f"The answer has {len(text):,} characters, more than {MOST_PROSE:,}.")
    refuse_hidden(text, "")
    return text.strip()


def refuse_hidden(text: str, known: str) -> None:
    """Refuse invisible characters and marks that change the direction of a text, also in comments and strings."""
    hidden = {char for char in text if char not in "\n\t" and unicodedata.category(char) in _HIDDEN} - set(known)
    if hidden:
        names = ", ".join(f"U+{ord(char):04X}" for char in sorted(hidden)[:5])
        raise RefusedAnswer("hidden_characters", f"The answer holds characters that cannot be seen: {names}.")


_ESCAPES = re.compile(r"(?<!\\)(?:\\\\)*(\\u+00(?:0[ad]|2[27af]|5c))", re.IGNORECASE)


def refuse_hidden_code(code: str, language: str) -> None:
    """Refuse what the compiler reads before it looks for texts and comments: Java's escapes of quotes and line ends, C++'s trigraphs."""
    found = _ESCAPES.search(code) if language == "java" else re.search(r"(\?\?/)", code) if language == "cpp" else None
    if found:
        raise RefusedAnswer("hidden_code", f"The compiler reads {found[1]} before it looks for texts and comments.")


def refuse_foreign_letters(words: Iterable[str], known: str) -> None:
    """Refuse letters outside ASCII in the names of code, unless the file has them: `а` of another script looks like `a`."""
    foreign = {char for word in words for char in word if not char.isascii()} - set(known)
    if foreign:
        names = ", ".join(f"U+{ord(char):04X}" for char in sorted(foreign)[:5])
        raise RefusedAnswer("foreign_letters", f"Names in the code use letters that are not ASCII: {names}.")


def python_words(code: str) -> list[str]:
    """The tokens of Python code that are neither text nor comments. Empty for code that does not parse."""
    skipped = {tokenize.STRING, tokenize.COMMENT, *_FSTRING}
    try:
        found = tokenize.generate_tokens(io.StringIO(code).readline)
        return [token.string for token in found if token.type not in skipped]
    except (tokenize.TokenError, SyntaxError):
        return re.findall(r"\w+", code)


_FSTRING = tuple(getattr(tokenize, name) for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name))  # fmt: skip
