"""The tokenizer of a .gguf file as tokenizer.json. The file's `tokenizer.ggml.pre` names the splitting rule.

A missing or unknown rule is an error: with another rule a model would get other tokens than it was trained on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mftcoder.data.tokenizers import byte_level, sentencepiece
from mftcoder.data.tokenizers.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Pieces
from mftcoder.errors import ModelError
from mftcoder.jsonl import write_json, write_text

SETTINGS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
ADVICE = "Set model.tokenizer_name_or_path to the folder or Hub id of the original model"


_OPEN: dict[Path, Any] = {}


@contextmanager
def opened_gguf(file: Path) -> Iterator[Any]:
    """The gguf package's reader: `fields` (metadata) and `tensors`. ModelError if the package is missing or the file is broken.

    Parsing a large vocabulary takes seconds, so opening the same file again inside the block gives the same reader.
    """
    if file in _OPEN:
        yield _OPEN[file]
        return
    _OPEN[file] = _reader(file)
    try:
        yield _OPEN[file]
    finally:
        del _OPEN[file]


def _reader(file: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"{file}: reading .gguf files needs the gguf package: pip install 'mftcoder[gguf]'") from error
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # the reader raises what numpy raises on a short or foreign file
        raise ModelError(f"{file}: is not a GGUF file, or is truncated: {error}") from error
    if reader.byte_order != "I":
        raise ModelError(f"{file}: has the byte order of another machine; convert it with gguf-convert-endian")
    return reader


def write_tokenizer(file: Path, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of `file` into `folder`."""
    prefix = "tokenizer.ggml."
    with opened_gguf(file) as reader:
        fields = {
            key.removeprefix(prefix): field for key, field in reader.fields.items() if key.startswith("tokenizer.")
        }
        values = {key: field.contents() for key, field in fields.items()}
    kind = values.get("model")
    if kind not in BUILDERS:
        what = f"its tokenizer is of the unsupported kind '{kind}'" if kind else "it holds no tokenizer"
        raise ModelError(f"{file}: {what}. {ADVICE}")
    if len(set(values["tokens"])) != len(values["tokens"]):
        raise ModelError(f"{file}: its vocabulary holds a token twice. {ADVICE}")
    named = named_tokens(values)
    backend = BUILDERS[kind](values, file, named)
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    if template := values.get("tokenizer.chat_template"):
        write_text(folder / "chat_template.jinja", template)


def named_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that the fields name: eos_token, ..."""
    ids = {name: fields.get(f"{key}_token_id") for name, key in SETTINGS.items()}
    return {name: fields["tokens"][number] for name, number in ids.items() if number is not None}


def _byte_level(values: Mapping[str, Any], file: Path, named: Mapping[str, str]) -> tokenizers.Tokenizer:
    rule = values.get("pre", "")
    if rule not in byte_level.SPLITTINGS:
        what = f"has the unknown splitting rule '{rule}' (tokenizer.ggml.pre)" if rule else (
            "does not name its splitting rule (no tokenizer.ggml.pre), like all files from before May 2024"
        )  # fmt: skip
        raise ModelError(f"{file}: its tokenizer {what}. {ADVICE}")
    splitting = byte_level.SPLITTINGS[rule]
    tokens = values["tokens"]
    kinds = values.get("token_type") or [NORMAL] * len(tokens)
    special = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL} | set(named.values())
    added = [
        AddedToken(token, normalized=False, special=token in special)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == USER_DEFINED or token in special
    ]
    merges = [tuple(merge.split(" ", 1)) for merge in values.get("merges", ())]
    opens = values.get("add_bos_token", splitting.adds_bos)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return byte_level.build(vocabulary, merges, splitting, added=added, bos=named.get("bos_token", "") if opens else "")


def _sentencepiece(values: Mapping[str, Any], file: Path, named: Mapping[str, str]) -> tokenizers.Tokenizer:
    """ModelError if the scores do not order the merges: then the file was not made from a sentencepiece model."""
    tokens, scores = values["tokens"], values.get("scores") or []
    kinds = values.get("token_type") or []
    ordinary = [
        score for token, score, kind in zip(tokens, scores, kinds, strict=False) if kind == NORMAL and len(token) > 1
    ]
    if len(scores) != len(tokens) or len(kinds) != len(tokens) or len(set(ordinary)) != len(ordinary):
        raise ModelError(f"{file}: the scores of its tokenizer do not give the order of its merges. {ADVICE}")
    pieces = Pieces(
        tokens,
        scores,
        [UNKNOWN if token == named.get("unk_token") else kind for token, kind in zip(tokens, kinds, strict=True)],
        space_first=values.get("add_space_prefix", True),
        single_spaces=values.get("remove_extra_whitespaces", False),
    )
    if "precompiled_charsmap" in values:
        raise ModelError(f"{file}: its tokenizer normalizes text by a table, which is not supported. {ADVICE}")
    backend = sentencepiece.build(pieces)
    if values.get("add_bos_token", True) and "bos_token" in named:
        byte_level.begin_with(backend, named["bos_token"])
    return backend


BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}
