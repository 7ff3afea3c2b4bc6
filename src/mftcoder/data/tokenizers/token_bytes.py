"""The bytes that each token of a vocabulary stands for. A token may be a part of a character."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mftcoder.data.tokenizers.byte_level import byte_letters
from mftcoder.data.tokenizers.tokenizer import Tokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Id -> bytes of the tokens that ordinary text is made of: without special tokens."""
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
