"""A tokenizer as the `tokenizer.ggml.` fields of a .gguf file: the way back from `gguf.py`.

The fields do not hold everything that a tokenizer.json can say. So the tokenizer is made from the fields again, as a reader makes it, and
compared on texts and on the vocabulary's own tokens. A tokenizer that would give other ids is refused.
"""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mftcoder.data.tokenizers import byte_level
from mftcoder.data.tokenizers.gguf import BUILDERS, SETTINGS, named_tokens
from mftcoder.data.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, PROBES, UNKNOWN, UNUSED, USER_DEFINED
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import ModelError

Fields = dict[str, Any]
LINES, TOKENS_OF_LINE = 400, 12
"""How many lines of the vocabulary's own tokens are compared."""
ATOMS = (
    "a", "Ab", "\u00e9", "e\u0301", "\u4e2d", "\u05d0", "1", "234", "\u00b2", "_", "-", "//", "'s", "'LL", "\U0001f642",
    " ", "  ", "\t", "\n", "\n\n", "\r\n", "\u00a0",
)  # fmt: skip
"""Every text of three of these is compared: what splitting rules treat differently stands side by side in them."""


def tokenizer_fields(tokenizer: Tokenizer, rows: int) -> Fields:
    """The fields for a model whose embedding has `rows` rows; rows without a token get a name that no text gives.

    ModelError if no fields give the same ids.
    """
    described = json.loads(tokenizer.backend.to_str())
    if described["model"]["type"] != "BPE":
        raise ModelError(f"{tokenizer.name}: its tokenizer is {described['model']['type']}, not byte pairs. {REFUSED}")
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{tokenizer.name}: has {tokenizer.vocab_size} tokens, but the model only {rows} rows for them"
        )
    for fields in _candidates(tokenizer, described["model"], rows):
        if _agrees(fields, tokenizer):
            return fields
    raise ModelError(
        f"{tokenizer.name}: its tokenizer splits text by a rule that .gguf files have no name for. {REFUSED}"
    )


REFUSED = "A .gguf file cannot hold it; choose another method of quantization"


def _candidates(tokenizer: Tokenizer, model: Mapping[str, Any], rows: int) -> Iterator[Fields]:
    """What the fields could be. Rules of the same effect have several names; the first one is as good as the others."""
    if model.get("byte_fallback"):
        common = _common(tokenizer, rows, unknown=model.get("unk_token"))
        scores = _scores(common["tokens"], model["merges"])
        for space in (True, False):
            yield {"model": "llama", **common, "scores": scores, "add_space_prefix": space}
        return
    common = _common(tokenizer, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for rule, splitting in byte_level.SPLITTINGS.items():
        if splitting.ignore_merges == bool(model.get("ignore_merges")):
            yield {"model": "gpt2", "pre": rule, **common, "merges": merges}


def _common(tokenizer: Tokenizer, rows: int, *, unknown: str | None = None) -> Fields:
    """The fields that both kinds of vocabulary have. Only one of pieces has an `unknown` token."""
    backend, by_pieces = tokenizer.backend, unknown is not None
    named = {**({"unk_token": unknown} if unknown is not None else {}), **tokenizer.named_tokens}
    tokens = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    added = backend.get_added_tokens_decoder()

    def kind(number: int) -> int:
        if number in added:
            special = added[number].special or tokens[number] in named.values()
            return UNKNOWN if by_pieces and tokens[number] == unknown else CONTROL if special else USER_DEFINED
        is_byte = by_pieces and len(tokens[number]) == 6 and tokens[number].startswith("<0x")
        return BYTE if is_byte else NORMAL

    ids = {
        f"{key}_token_id": backend.token_to_id(named[name])
        for name, key in SETTINGS.items()
        if backend.token_to_id(named.get(name, "")) is not None
    }
    return {
        "tokens": [tokens.get(number, f"[PAD{number}]") for number in range(rows)],
        "token_type": [kind(number) if number in tokens else UNUSED for number in range(rows)],
        **ids,
        "add_bos_token": tokenizer.adds_bos,
    }


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """A score for each token that orders the merges: the earlier the first merge that makes a token, the higher its score."""
    made: dict[str, float] = {}
    for merge in merges:
        made.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), -float(len(made)))
    return [made.get(token, -float(len(made) + number)) for number, token in enumerate(tokens)]


def _agrees(fields: Fields, tokenizer: Tokenizer) -> bool:
    """Whether a reader of the fields gets the same ids from every probe."""
    try:
        read = BUILDERS[fields["model"]](fields, Path(tokenizer.name), named_tokens(fields))
    except (ModelError, ValueError):
        return False
    if read.encode("").ids != tokenizer.backend.encode("").ids:  # BOS and EOS around a text
        return False
    probes = list(_probes(tokenizer))
    return _ids(read, probes) == _ids(tokenizer.backend, probes)


def _ids(backend: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from PROBES
    yield from map("".join, itertools.product(ATOMS, repeat=3))
    added = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    yield from (f"a {token} b{token}\nc{token}{token}" for token in added)
    drawn = random.Random(0)
    ids = range(tokenizer.vocab_size)
    for _ in range(LINES):
        yield tokenizer.decode(drawn.choices(ids, k=TOKENS_OF_LINE))
