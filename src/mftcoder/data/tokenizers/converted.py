"""A tokenizer.json for folders and files that have none, made once in the cache.

The sources are a .gguf file, or a folder with qwen.tiktoken, tokenizer.model, or vocab.json and merges.txt. The cached folder has
tokenizer.json, its settings and its chat template. Python code that comes with a tokenizer is never run.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mftcoder import cache
from mftcoder.data.tokenizers import byte_level, gguf, qwen, sentencepiece
from mftcoder.errors import MftError, ModelError, reason
from mftcoder.jsonl import atomic_folder, read_json, write_json

MADE_BY = (byte_level, gguf, qwen, sentencepiece)
"""The modules that shape a converted tokenizer; after a change in one of them it is made again."""

TABLES = (qwen.FILE, "tokenizer.model", "vocab.json")
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
KEPT = ("tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json")


def folder_of(source: Path) -> Path:
    """The folder of the tokenizer that is made from `source`. ModelError if its kind is unknown, or if it is damaged."""
    is_gguf = source.is_file()
    if not is_gguf and not any((source / table).is_file() for table in TABLES):
        raise ModelError(
            f"{source}: it holds no tokenizer (no tokenizer.json, no tokenizer.model). "
            "Copy the tokenizer's files there, or set model.tokenizer_name_or_path."
        )
    target = cache.cache_root() / "tokenizers" / _key(source)
    if not (target / "tokenizer.json").is_file():
        try:
            with atomic_folder(target) as temporary:
                _write(source, temporary)
        except (MftError, OSError):
            raise
        except Exception as error:  # tables that contradict each other; the tokenizers library raises plain Exception
            raise ModelError(f"{source}: its tokenizer cannot be read, it may be damaged: {reason(error)}") from error
    return target


def _key(source: Path) -> str:
    made_by = (sys.modules[__name__], *MADE_BY)
    if source.is_file():
        return cache.key(*made_by, cache.content_hash(source))
    patterns = ("*token*", "*.json", "*.txt", "*.jinja", qwen.FILE)
    files = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    return cache.key(*made_by, *sorted(path for path in files if not path.name.endswith(".index.json")))


def _write(source: Path, folder: Path) -> None:
    if source.is_file():
        gguf.write_tokenizer(source, folder)
    elif (source / qwen.FILE).is_file():
        qwen.write_tokenizer(source / qwen.FILE, folder)
    else:
        _write_tables(source, folder)


def _write_tables(source: Path, folder: Path) -> None:
    settings: dict[str, Any] = {}
    for name in SETTINGS:
        settings |= read_json(source / name) if (source / name).is_file() else {}
    reader = sentencepiece if (source / "tokenizer.model").is_file() else byte_level
    backend, named = reader.read_folder(source, settings)
    _add_tokens(backend, _added_tokens(source, settings, named), source)
    backend.save(str(folder / "tokenizer.json"))
    kept = {key: value for key, value in settings.items() if key not in ("auto_map", "added_tokens_decoder")}
    write_json(folder / "tokenizer_config.json", {**kept, **named, "tokenizer_class": "PreTrainedTokenizerFast"})
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _added_tokens(
    source: Path, settings: Mapping[str, Any], named: Mapping[str, str]
) -> list[tuple[int | None, AddedToken]]:
    """Tokens outside the tables with the ids that the folder gives them, by ascending id; those without an id come last."""
    more = map(byte_level.token_text, settings.get("additional_special_tokens") or ())
    found: dict[str, tuple[int | None, AddedToken]] = {
        text: (None, AddedToken(text, normalized=False, special=True)) for text in (*named.values(), *more)
    }
    if (source / "added_tokens.json").is_file():
        for text, number in read_json(source / "added_tokens.json").items():
            found[text] = (number, AddedToken(text, normalized=False, special=text in found))
    for number, value in (settings.get("added_tokens_decoder") or {}).items():
        flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
        found[value["content"]] = (
            int(number),
            AddedToken(value["content"], **{flag: bool(value.get(flag)) for flag in flags}),
        )
    return sorted(found.values(), key=lambda entry: (entry[0] is None, entry[0]))


def _add_tokens(backend: tokenizers.Tokenizer, added: list[tuple[int | None, AddedToken]], source: Path) -> None:
    byte_level.add_tokens(backend, [token for _, token in added])
    for number, token in added:
        given = backend.token_to_id(token.content)
        if number is not None and given != number:
            raise ModelError(
                f"{source}: its added token {json.dumps(token.content)} has the id {number}, but would get {given}. Set "
                "model.tokenizer_name_or_path to a folder with the same tokenizer as tokenizer.json"
            )
