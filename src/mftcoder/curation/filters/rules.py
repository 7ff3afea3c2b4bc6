"""The table of rules: a name, what it measures, and the bounds in which a record is kept.

A rule is a function from an Example to a number or a name, or to None where the rule does not apply. Which rules a recipe uses, and with
which bounds, is left to config.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mftcoder.curation.example import Example
from mftcoder.curation.filters import code, lint, privacy, text

Value = float | str | None
Bounds = tuple[float | None, float | None]
"""Lowest and highest value that is kept; None for no bound."""
Names = tuple[str, ...]
"""The names that are kept."""
Measure = Callable[[Example], Value]


@dataclass(frozen=True, slots=True)
class Rule:
    """A record is kept if its value is inside the bounds, a bound itself being inside, or one of the names."""

    measures: str
    measure: Measure | None
    keeps: Bounds | Names
    measure_all: Callable[[Sequence[Example]], Sequence[Value]] | None = (
        None  # instead of `measure`: many records at once
    )
    needs: str = ""  # a module of the extra `curate`
    is_private: bool = False  # what it finds is shown nowhere

    @property
    def keeps_names(self) -> bool:
        """Whether the values are names."""
        return isinstance(self.keeps[0], str)


RULES: dict[str, Rule] = {
    "question_words": Rule("words of the question, split at whitespace", text.question_words, (10, 1000)),
    "answer_words": Rule("words of the answer, split at whitespace", text.answer_words, (50, 2000)),
    "code_blocks": Rule("fenced blocks of the answer", code.code_blocks, (1, 1)),
    "code_lines": Rule("lines of the fenced blocks, blank ones at the end left out", code.code_lines, (3, 100)),
    "words_before_code": Rule("words of the answer before its first fenced block", code.words_before_code, (None, 200)),
    "open_fences": Rule("fenced blocks that are not closed: the answer was cut", code.open_fences, (None, 0)),
    "broken_python": Rule("Python blocks of the answer that do not parse", code.broken_python, (None, 0)),
    "broken_code": Rule(
        "blocks fenced as Go, Rust, Java, C++ or JavaScript that tree-sitter finds an error in",
        code.broken_code,
        (None, 0),
        needs="tree_sitter",
    ),
    "empty_functions": Rule(
        "Python functions without a body: a docstring, `pass`, `...` or NotImplementedError only",
        code.empty_functions,
        (None, 0),
    ),
    "compression_ratio": Rule(
        f"bytes of the answer after zlib over bytes before, from {text.LEAST_COMPRESSED} bytes on",
        text.compression_ratio,
        (0.1, 0.9),
    ),
    "repeated_lines": Rule(
        f"share of the answer's lines that stand in it before already, from {text.LEAST_LINES} lines on",
        text.repeated_lines,
        (None, 0.3),
    ),
    "repeated_ngrams": Rule(
        f"share of the answer's {text.NGRAM}-grams of words that stand in it before already, from {text.LEAST_NGRAMS} of them on",
        text.repeated_ngrams,
        (None, 0.4),
    ),
    "alphanumeric_share": Rule("share of letters and digits in the answer", text.alphanumeric_share, (0.25, None)),
    "longest_line": Rule("characters of the answer's longest line", text.longest_line, (None, 2000)),
    "mean_code_line": Rule(
        "mean characters of a line in the fenced blocks; above it: minified", code.mean_code_line, (None, 100)
    ),
    "generated_notes": Rule(
        "of the first five lines of code, those that say that a program wrote it", code.generated_notes, (None, 0)
    ),
    "placeholders": Rule(
        "comments of the code that leave the work to the reader: `TODO`, `your code here`", code.placeholders, (None, 0)
    ),
    "refusals": Rule("assistant turns that refuse, apologize first, or speak as an AI", text.refusals, (None, 0)),
    "other_language": Rule(
        "blocks of code, none of them in the only language that the question names",
        code.other_language,
        (None, 0),
        needs="tree_sitter",
    ),
    "lint_errors": Rule(
        "errors that ruff finds in the Python code (E9 and F)", None, (None, 0), lint.lint_errors, needs="ruff"
    ),
    "secrets": Rule(
        "keys, tokens and passwords of a known form (detect-secrets)",
        privacy.secrets,
        (None, 0),
        needs="detect_secrets",
        is_private=True,
    ),
    "personal_data": Rule(
        "e-mail addresses, phone numbers and public IP addresses that are no placeholders",
        privacy.personal_data,
        (None, 0),
        is_private=True,
    ),
    "prose_language": Rule(
        f"the language of the prose (py3langid), from {text.LEAST_PROSE_BYTES} bytes on",
        text.prose_language,
        ("en", "zh"),
        needs="py3langid",
    ),
}
"""Rule by name, with what it keeps by default. docs/curation.md lists them."""

PRESETS: dict[str, tuple[str, ...]] = {
    "evol_66k": ("question_words", "answer_words", "code_blocks", "code_lines", "words_before_code"),
    "general": (
        "open_fences",
        "broken_python",
        "empty_functions",
        "compression_ratio",
        "repeated_lines",
        "repeated_ngrams",
        "alphanumeric_share",
        "longest_line",
        "mean_code_line",
        "generated_notes",
        "refusals",
    ),
}
"""Groups of rules with their default bounds. evol_66k: the published filters of the Evol-instruction-66k data set."""


def kept_in_words(keeps: Bounds | Names) -> str:
    """`10 to 1000`, `at least 0.1`, `at most 200`, `en or zh`."""
    low, high = (keeps[0], keeps[-1])
    if isinstance(low, str) or isinstance(high, str):
        return " or ".join(map(str, keeps))
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at most {high:g}" if low is None else f"at least {low:g}"
