"""A prompt may end anywhere, also inside a word: its last word is taken back, and the first tokens are held to its text.

A model reads `func` as other tokens than the beginning of `function`, so it seldom completes such a word. Without the word's tokens,
it writes the word again, choosing only tokens that agree with it: `func`, then `tion`, or `function` in one. Then it goes on freely.
The text is what follows the prompt. Where the model would have written the same characters anyway, it is the very same text. Torch-free.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from mftcoder.data.tokenizers.byte_level import byte_letters
from mftcoder.data.tokenizers.tokenizer import Tokenizer

MOST_BYTES = 64  # of the end of a longer word are taken back
_LAST_WORD = re.compile(r" ?\w+\Z| ?[^\w\s]+\Z|\s+\Z")
"""What tokenizers may join with characters that come after it: a word or signs with the space before them, or whitespace."""


_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Id -> bytes of the tokens that ordinary text is made of: without special tokens. A token may be a part of a character."""
    kinds = set(_kinds(json.loads(tokenizer.backend.to_str())["decoder"]))
    added = dict(tokenizer.backend.get_added_tokens_decoder())
    letters = {letter: byte for byte, letter in byte_letters().items()} if "ByteLevel" in kinds else None
    found = {}
    for text, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if number in added:
            if not added[number].special and text not in tokenizer.special_tokens:
                found[number] = text.encode()
        elif letters is not None:
            found[number] = bytes(letters[letter] for letter in text if letter in letters)
        elif byte := _BYTE.fullmatch(text):
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = text.replace("\u2581", " ").encode()  # how sentencepiece writes a space
    return found


def _kinds(decoder: Any) -> Iterator[str]:
    """The kinds of decoder in a tokenizer.json, sequences taken apart."""
    if decoder:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


class Vocabulary:
    """The tokens that text is made of, in the order of their bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self.bytes = token_bytes(tokenizer)
        pairs = sorted((text, number) for number, text in self.bytes.items() if text)
        self._texts = [text for text, _ in pairs]
        self._ids = [number for _, number in pairs]

    def agreeing(self, text: bytes) -> list[int]:
        """Tokens that begin with `text`, and tokens that `text` begins with if another token can follow them."""
        found = self._between(text, text + b"\xff")
        for end in range(1, len(text)):
            if self._has_agreeing(text[end:]):
                found += self._between(text[:end], text[:end] + b"\0")
        return found

    def _between(self, first: bytes, last: bytes) -> list[int]:
        return self._ids[bisect_left(self._texts, first) : bisect_left(self._texts, last)]

    def _has_agreeing(self, text: bytes) -> bool:
        return any(self._between(text[:end], text[:end] + b"\0") for end in range(1, len(text) + 1)) or bool(
            self._between(text, text + b"\xff")
        )


class HeldText:
    """The bytes that the next tokens must agree with."""

    def __init__(self, vocabulary: Vocabulary, ids: Sequence[int]):
        self._vocabulary = vocabulary
        self.left = b"".join(vocabulary.bytes[number] for number in ids)
        self.tokens = 0
        """Tokens that wrote nothing else."""

    def allowed(self) -> list[int]:
        """The tokens that may come next, while bytes are left."""
        return self._vocabulary.agreeing(self.left)

    def take(self, token: int) -> None:
        size = len(self._vocabulary.bytes[token])
        self.tokens += size <= len(self.left)
        self.left = self.left[size:]


def held_tokens(text: str, ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """How many tokens at the end of `ids`, the tokens of a prompt `text`, make its last word; 0 if the text is not theirs."""
    found = _LAST_WORD.search(text[-2 * MOST_BYTES :])
    if found is None:
        return 0
    word = found[0].encode()[-MOST_BYTES:]
    held = b""
    for count, piece in enumerate(_from_the_end(ids, vocabulary), start=1):
        held = piece + held
        whole_characters = not 0x80 <= held[0] < 0xC0
        if len(held) >= len(word) and whole_characters:
            return count if held.endswith(word) else 0
    return len(ids) if held and word.endswith(held) and len(held) == len(word) else 0


def _from_the_end(ids: Sequence[int], vocabulary: Vocabulary) -> Iterator[bytes]:
    """The bytes of the tokens, the last first, up to a special token."""
    for number in reversed(ids):
        if not vocabulary.bytes.get(number):
            return
        yield vocabulary.bytes[number]
