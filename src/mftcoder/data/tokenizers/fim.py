"""Fill-in-the-middle: the marker tokens of each model family, found by the tokenizer's own vocabulary, and how a text is rearranged.

A text is cut into prefix P, middle M and suffix S. The model learns to write M, which comes last (arXiv 2207.14255):

    PSM    <prefix> P <suffix> S <middle> M
    SPM    <prefix> <suffix> S <middle> P M

Codestral has no middle token, and only one order: [SUFFIX] S [PREFIX] P M.
"""

from dataclasses import dataclass
from typing import Literal

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import ModelError

Order = Literal["psm", "spm"]


@dataclass(frozen=True)
class FimFormat:
    """The marker tokens of one family. `middle` is empty for a family that has only the order SPM, and no middle token."""

    family: str
    prefix: str
    suffix: str
    middle: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """The markers, without an empty one."""
        return tuple(filter(None, (self.prefix, self.suffix, self.middle)))

    def arrange(self, prefix: str, middle: str, suffix: str, order: Order) -> list[str]:
        """Markers and texts in turn, the marker first: `[marker, text, marker, text, ...]`; a text may be empty."""
        if not self.middle:
            return [self.suffix, suffix, self.prefix, prefix + middle]
        if order == "psm":
            return [self.prefix, prefix, self.suffix, suffix, self.middle, middle]
        return [self.prefix, "", self.suffix, suffix, self.middle, prefix + middle]


FORMATS = (
    FimFormat("Qwen, Granite, CodeGemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    FimFormat("StarCoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    FimFormat("CodeLlama", "▁<PRE>", "▁<SUF>", "▁<MID>"),
    FimFormat("DeepSeek", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    FimFormat("Codestral", "[PREFIX]", "[SUFFIX]", ""),
)


def fim_format(tokenizer: Tokenizer) -> FimFormat:
    """The format whose tokens are all in the vocabulary. ModelError if there is none."""
    for found in FORMATS:
        if all(tokenizer.backend.token_to_id(token) is not None for token in found.tokens):
            return found
    known = "; ".join(f"{' '.join(one.tokens)} ({one.family})" for one in FORMATS)
    raise ModelError(
        f"{tokenizer.name}: its vocabulary has no tokens for fill-in-the-middle. Known: {known}. Set kind.fim_rate: 0, or take a "
        "model with such tokens"
    )


def marker_id(tokenizer: Tokenizer, marker: str) -> int:
    """The id of a marker of `fim_format`."""
    found = tokenizer.backend.token_to_id(marker)
    assert found is not None, "fim_format has looked it up"
    return found
