"""The same tokens faster: the words of ASCII texts are looked up instead of being merged again.

Byte-level BPE tokenizers spend most of their time on splitting a text into words, with bookkeeping per character that training
does not need. For ASCII text, `re` can run their patterns, and the ids of each word are remembered. Where the result could differ
(another kind of tokenizer, other characters, special flags), there is no WordEncoder, or it passes the text to the tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel(use_regex=True)` (tokenizers, pre_tokenizers/byte_level.rs)."""
_ASCII_CLASSES = {"L": "a-zA-Z", "N": "0-9"}
_HARMLESS_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD"}  # ASCII is its own normal form
_MAX_WORDS = 200_000
_MAX_CACHED_LENGTH = 64
_PROBES = (
    "def f(x: int) -> str:\n\treturn  'it''s' + str(x * 1234567)\n\n\n  # done \n",
    "a  b\r\n\r\n   c\t\t d \x0b\x1c\x7f\x00 e'LL We'Re I'm 3.14e-10 ... !!??((__init__)) \n ",
)


class _Ids(dict[str, tuple[int, ...]]):
    """Word -> ids; a new word is encoded by the tokenizer's own model."""

    def __init__(self, model: Any):
        self.model = model

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(token.id for token in self.model.tokenize(word.translate(_BYTE_CHARACTERS)))
        if len(word) <= _MAX_CACHED_LENGTH:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encodes texts to the same ids as `backend.encode_batch_fast`. Made by `of`, which checks that this holds."""

    def __init__(self, backend: tokenizers.Tokenizer, cut: Callable[[str], list[str]], added: dict[str, int]):
        self._backend, self._cut, self._added = backend, cut, {token: (number,) for token, number in added.items()}
        # Where several tokens start, the longest wins, as in the tokenizer's own search.
        longest_first = sorted(added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if added else lambda text: [text]
        self._ids = _Ids(backend.model)

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "WordEncoder | None":
        """The encoder for this tokenizer, or None if this module cannot split text as the tokenizer does."""
        description = json.loads(backend.to_str())
        cut = _cutter(description["pre_tokenizer"])
        added = backend.get_added_tokens_decoder()
        flagged = any(token.lstrip or token.rstrip or token.single_word for token in added.values())
        if (
            cut is None
            or flagged
            or not _is_plain_bpe(description["model"])
            or not _is_harmless(description["normalizer"])
        ):
            return None
        encoder = cls(backend, cut, {token.content: number for number, token in added.items()})
        probes = [*_PROBES, *(f"{probe}{token}{probe}" for probe in _PROBES for token in list(encoder._added)[:3])]
        return (
            encoder
            if all(encoder._ascii(probe) == backend.encode(probe, add_special_tokens=False).ids for probe in probes)
            else None
        )

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Ids of each text, in order."""
        others = iter(
            self._backend.encode_batch_fast([text for text in texts if not text.isascii()], add_special_tokens=False)
        )
        for text in texts:
            yield np.array(self._ascii(text) if text.isascii() else next(others).ids, np.int32)

    def _ascii(self, text: str) -> list[int]:
        parts = self._split(text)
        ids = [
            (self._added[part],) if index % 2 else map(self._ids.__getitem__, self._cut(part))
            for index, part in enumerate(parts)
            if part
        ]
        return list(chain.from_iterable(chain.from_iterable(ids)))


def _is_plain_bpe(model: dict[str, Any]) -> bool:
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return model["type"] == "BPE" and not any(model.get(key) for key in odd)


def _is_harmless(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_is_harmless, normalizer["normalizers"]))
    return normalizer["type"] in _HARMLESS_NORMALIZERS


def _cutter(pre_tokenizer: dict[str, Any] | None) -> Callable[[str], list[str]] | None:
    """A function that splits an ASCII text into the pre-tokenizer's words; None if it has an unknown step."""
    steps = [] if pre_tokenizer is None else [pre_tokenizer]
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    patterns = [_step_pattern(step) for step in steps]
    if any(pattern is None for pattern in patterns):
        return None
    splits = [re.compile(f"({pattern})", re.ASCII).split for pattern in patterns if pattern]
    if len(splits) > 1:
        return lambda text: _cut_by(splits, text)
    find = re.compile(str(patterns[0] or patterns[-1]), re.ASCII).findall
    return lambda text: _found_or_cut(find(text), splits, text)


def _found_or_cut(words: list[str], splits: Sequence[Callable[[str], list[str]]], text: str) -> list[str]:
    """The matches of a single pattern, if they leave no gap; otherwise the text between matches is a word, too."""
    return words if sum(map(len, words)) == len(text) else _cut_by(splits, text)


def _cut_by(splits: Sequence[Callable[[str], list[str]]], text: str) -> list[str]:
    """Step by step: the next pattern splits both the matches of a pattern and the text between them."""
    words = [text]
    for split in splits:
        words = [part for word in words for part in split(word) if part]
    return words


def _step_pattern(step: dict[str, Any]) -> str | None:
    """The pattern of a step in the syntax of `re`; empty if the step does not split, None if it is unknown."""
    if step["type"] == "ByteLevel":
        return _for_ascii(GPT2_PATTERN) if step.get("use_regex", True) else ""
    if step["type"] == "Digits":
        return "[0-9]" if step["individual_digits"] else "[0-9]+"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return _for_ascii(step["pattern"]["Regex"]) if "Regex" in step["pattern"] else None
    return None


def _for_ascii(pattern: str) -> str | None:
    r"""The pattern with `\p{L}` and `\p{N}` written out for ASCII; None if it has other properties, groups or backslashes."""
    spelled, inside = "", False
    for piece in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        if piece.startswith("\\p"):
            letters = _ASCII_CLASSES.get(piece[3:-1])
            if letters is None:
                return None
            piece = letters if inside else f"[{letters}]"
        elif piece in ("[", "]"):
            inside = piece == "["
        elif len(piece) == 2 and piece[1] not in "sSdDwWrnt.*+?()[]{}|^$-/'\\":
            return None
        spelled += piece
    return spelled if re.search(r"(?<!\\)\((?!\?)|&&", spelled) is None else None


_BYTE_CHARACTERS = {code: 256 + index for index, code in enumerate((*range(33), 127))}
"""The characters of the ASCII bytes in byte-level tokenizers: visible ones stay, the others start at U+0100."""
