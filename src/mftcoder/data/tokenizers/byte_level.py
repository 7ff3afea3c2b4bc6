"""Byte-level BPE tokenizers from their tables: a vocabulary, merges, and a rule that splits text into words before merging.

A model's tables do not hold the splitting rule, and another rule gives other tokens. The rules are named here as in llama.cpp's
`tokenizer.ggml.pre`, with the patterns of the published tokenizer.json files; each model says which one it uses.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS_AND_WHITESPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{SYMBOLS_AND_WHITESPACE}"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{SYMBOLS_AND_WHITESPACE}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+TAIL|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*TAIL"
SYMBOLS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{CASED.replace('TAIL', '')}|\p{{N}}|{SYMBOLS_AND_SLASHES}"
GPT_4O = rf"{CASED.replace('TAIL', CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{SYMBOLS_AND_SLASHES}"
EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DIGIT = pre_tokenizers.Digits(individual_digits=True)


@dataclass(frozen=True)
class Splitting:
    """The splitting rule of one kind of vocabulary."""

    steps: tuple[str | pre_tokenizers.PreTokenizer, ...] = ()
    """Patterns and pre-tokenizers; each splits the pieces of the one before."""
    gpt2_words: bool = False  # ByteLevel's own pattern comes last
    composed: bool = False  # text is first normalized to Unicode's form NFC
    ignore_merges: bool = False  # a word that is in the vocabulary is one token, whatever the merges say
    adds_bos: bool = False  # the default where the file does not say it


SPLITTINGS = {
    "gpt-2": Splitting(gpt2_words=True),
    "phi-2": Splitting(gpt2_words=True),
    "starcoder": Splitting((DIGIT,), gpt2_words=True),
    "smollm": Splitting((DIGIT,), gpt2_words=True),
    "refact": Splitting((DIGIT,), gpt2_words=True),
    "codeshell": Splitting((DIGIT,), gpt2_words=True),
    "qwen2": Splitting((QWEN2,), composed=True),
    "deepseek-r1-qwen": Splitting((QWEN2,), composed=True),
    "llama-bpe": Splitting((LLAMA3,), ignore_merges=True, adds_bos=True),
    "llama3": Splitting((LLAMA3,), ignore_merges=True, adds_bos=True),
    "llama-v3": Splitting((LLAMA3,), ignore_merges=True, adds_bos=True),
    "smaug-bpe": Splitting((LLAMA3,)),
    "dbrx": Splitting((LLAMA3,)),
    "tekken": Splitting((TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o": Splitting((GPT_4O,)),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGIT)),
}
FAMILIES = {
    "gpt2": "gpt-2",
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2",
    "qwen3": "qwen2",
    "qwen3_moe": "qwen2",
}
"""model_type of a folder with vocab.json and merges.txt to its splitting rule."""
MOST_UNMADE = 0.05
"""Largest fraction of a vocabulary that no merge makes; in published vocabularies these are only special tokens."""

RARE_BYTES = frozenset({*range(0x20), 0x7F, 0xC0, 0xC1, *range(0xF1, 0x100)} - {*b"\t\n\r"})
"""Control characters, bytes that UTF-8 never uses, and the first bytes of characters from U+40000 on. A published vocabulary may lack
some of them, because they did not occur in the text that it was made from: SmolLM2's lacks 21."""


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def build(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    splitting: Splitting,
    *,
    added: Iterable[AddedToken] = (),
    bos: str = "",
) -> tokenizers.Tokenizer:
    """The tokenizer of these tables. `added` tokens are in the vocabulary or get the ids after it; `bos` begins every text.

    ValueError if a byte of ordinary text has no token: such text would be lost.
    """
    lacking = [byte for byte, letter in byte_letters().items() if letter not in vocabulary and byte not in RARE_BYTES]
    if lacking:
        raise ValueError(
            f"its vocabulary lacks {len(lacking)} of the {256 - len(RARE_BYTES)} bytes of ordinary text, so a part of every text "
            "would be lost"
        )
    backend = tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges), ignore_merges=splitting.ignore_merges))
    if splitting.composed:
        backend.normalizer = normalizers.NFC()
    steps = [
        pre_tokenizers.Split(Regex(step), behavior="isolated") if isinstance(step, str) else step
        for step in splitting.steps
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.gpt2_words)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    backend.decoder = decoders.ByteLevel()
    add_tokens(backend, added)
    if bos:
        begin_with(backend, bos)
    return backend


def add_tokens(backend: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
    """Add tokens that are found in a text before it is split, in this order."""
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def begin_with(backend: tokenizers.Tokenizer, bos: str) -> None:
    """Put the BOS token before every text that is encoded with special tokens."""
    number = backend.token_to_id(bos)
    backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, number)])


NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def token_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The named tokens of a tokenizer_config.json, where each is a string or an object with its `content`."""
    texts = {name: token_text(settings.get(name)) for name in NAMES}
    return {name: text for name, text in texts.items() if text}


def token_text(value: Any) -> str:
    """The text of a token; empty if there is none."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def read_folder(folder: Path, settings: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer of a folder with vocab.json and merges.txt, and its named tokens.

    ModelError if the splitting rule of its family is unknown.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    family = config.get("model_type")
    if family not in FAMILIES:
        why = "is in its own Python code, which is not run" if "auto_map" in settings else "is unknown"
        raise ModelError(
            f"{folder}: has vocab.json but no tokenizer.json, and the splitting rule of model type '{family}' {why}. Set "
            "model.tokenizer_name_or_path to a folder with the same tokenizer in its fast form (tokenizer.json)"
        )
    if not (folder / "merges.txt").is_file():
        raise ModelError(
            f"{folder}: has vocab.json but no merges.txt, so the tokenizer is incomplete. Download it again"
        )
    vocabulary = read_json(folder / "vocab.json")
    if not isinstance(vocabulary, dict) or len(set(map(str, vocabulary.values()))) != len(vocabulary):
        raise ModelError(f"{folder / 'vocab.json'}: is not a table of tokens with one id each. Download it again")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [(a, b) for line in lines if line and not line.startswith("#version") for a, b in [line.split(" ", 1)]]
    by_id = {number: token for token, number in vocabulary.items()}
    ids = {f"{name}_token": config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    named = {name: by_id[number] for name, number in ids.items() if number in by_id} | token_texts(settings)
    made = {a + b for a, b in merges} | set(named.values())
    unmade = [token for token in vocabulary if len(token) > 1 and token not in made and not re.match("<.*>$", token)]
    if len(unmade) > MOST_UNMADE * len(vocabulary):
        raise ModelError(
            f"{folder / 'merges.txt'}: lacks the merges of {len(unmade):,} tokens of vocab.json. Download it again"
        )
    return build(vocabulary, merges, SPLITTINGS[FAMILIES[family]]), named
