"""Fill in the middle: a prompt of the text before and after a gap, in the format that a model's vocabulary has tokens for.

<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>         Qwen2.5-Coder, Granite, CodeGemma
<fim_prefix>p<fim_suffix>s<fim_middle>               StarCoder
<PRE> p <SUF>s <MID>                                 Code Llama
<｜fim▁begin｜>p<｜fim▁hole｜>s<｜fim▁end｜>           DeepSeek-Coder
[SUFFIX]s[PREFIX]p                                   Codestral
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.data.rendering.tokenization import encode_inside
from mftcoder.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class FillFormat:
    """The tokens around prefix and suffix. Without `middle` the suffix comes first, and the text goes on after the prefix."""

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()
    """Tokens that end the middle, besides the model's own EOS tokens, where the vocabulary has them."""
    file: str | None = None
    """Token before the name of another file."""


FORMATS = (
    FillFormat(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
        "<|file_sep|>",
    ),
    FillFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>"), "<file_sep>"),
    FillFormat("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    FillFormat("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<|EOT|>",)),
    FillFormat("[PREFIX]", "[SUFFIX]", None, ("[MIDDLE]",)),
)


@dataclass(frozen=True)
class FillPrompt:
    """Token ids of a prompt: `prefix` stands between `before` and `after`."""

    before: tuple[int, ...]
    prefix: tuple[int, ...]
    after: tuple[int, ...]


def find_format(tokenizer: Tokenizer) -> FillFormat | None:
    """The format whose tokens the vocabulary has; None for a model that was not trained to fill in the middle."""
    known = tokenizer.backend.token_to_id
    for found in FORMATS:
        tokens = (found.prefix, found.suffix, *([found.middle] if found.middle else []))
        if all(known(token) is not None for token in tokens):
            return found
    return None


def end_tokens(form: FillFormat, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that end the middle."""
    named = (form.prefix, form.suffix, *([form.middle] if form.middle else []), *form.ends)
    return frozenset(number for token in named if (number := tokenizer.backend.token_to_id(token)) is not None)


def render_fill(
    form: FillFormat, tokenizer: Tokenizer, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = ()
) -> FillPrompt:
    """The prompt for the text between `prefix` and `suffix`. `files` are names and texts of other files, which come first."""
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    start = [*bos, *_files(form, tokenizer, files)]
    ids, after = tokenizer.encode(prefix), encode_inside(tokenizer, suffix)
    if form.middle is None:
        return FillPrompt(
            (*start, *_token(tokenizer, form.suffix), *after, *_token(tokenizer, form.prefix)), tuple(ids), ()
        )
    return FillPrompt(
        (*start, *_token(tokenizer, form.prefix)),
        tuple(ids),
        (*_token(tokenizer, form.suffix), *after, *_token(tokenizer, form.middle)),
    )


def _files(form: FillFormat, tokenizer: Tokenizer, files: Sequence[tuple[str, str]]) -> list[int]:
    """Other files: each after the token for files where there is one, else as text before everything."""
    separator = _token(tokenizer, form.file) if form.file else []
    found: list[int] = []
    for name, text in files:
        opening = f"{name}\n" if name else ""
        found += [*separator, *tokenizer.encode(f"{opening}{text.rstrip()}\n" + ("" if separator else "\n"))]
    return [*found, *separator] if found else []


def _token(tokenizer: Tokenizer, text: str) -> list[int]:
    number = tokenizer.backend.token_to_id(text)
    return [] if number is None else [number]
