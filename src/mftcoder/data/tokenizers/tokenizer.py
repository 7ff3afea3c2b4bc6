"""Load a tokenizer from a local folder, the Hub or a GGUF file.

It is described by tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja and config.json. Where there
is no tokenizer.json (sentencepiece models, GGUF files), `converted.py` makes one, once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import xxhash
from numpy.typing import NDArray

from mftcoder.data.tokenizers import converted, qwen
from mftcoder.data.tokenizers.byte_level import token_texts
from mftcoder.data.tokenizers.fast_bpe import WordEncoder
from mftcoder.errors import DataError, ModelError
from mftcoder.hub import download_snapshot, hub_errors
from mftcoder.jsonl import read_json

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    qwen.FILE,
)

CONVERSION_FILES = ("added_tokens.json", "tokenization_*.py")
"""Files that are needed only to make a tokenizer.json."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the settings in its files. `fingerprint` is a hash of those files."""

    name: str
    folder: str
    backend: tokenizers.Tokenizer
    eos_token: str
    bos_token: str
    pad_token: str
    named_tokens: dict[str, str]  # eos_token, bos_token, ...: the names in chat templates
    special_tokens: frozenset[str]
    chat_template: str | None
    fingerprint: str

    @cached_property
    def eos_id(self) -> int:
        return self._id(self.eos_token)

    @cached_property
    def bos_id(self) -> int | None:
        return self.backend.token_to_id(self.bos_token) if self.bos_token else None

    @cached_property
    def pad_id(self) -> int:
        """Id of the padding token; the EOS token's where there is none."""
        return self._id(self.pad_token) if self.pad_token else self.eos_id

    def _id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        assert number is not None, "named tokens were looked up when the tokenizer was loaded"
        return number

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included: the embedding must have at least as many rows."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts the BOS token before a text."""
        return bool(self.bos_token) and self.backend.encode("").ids[:1] == [self.bos_id]

    @cached_property
    def encodes_piecewise(self) -> bool:
        """Whether a text may be encoded piece by piece: true for byte-level tokenizers, false where a first word gets a space."""
        probes = [(f"{self.eos_token}", "ab"), ("x\n", "ab c"), (f"x{self.eos_token}\n", "def f")]
        return all(self.encode(a + b) == self.encode(a) + self.encode(b) for a, b in probes)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text, without added special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def _words(self) -> WordEncoder | None:
        return WordEncoder.of(self.backend)

    def encode_batch(self, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Token ids of many rendered texts, in order: the same ids as from `encode`, but faster."""
        if self._words is not None:
            yield from self._words.encode(texts)
            return
        for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False):
            yield np.array(encoding.ids, np.int32)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)


def load_tokenizer(model_name_or_path: str) -> Tokenizer:
    """The tokenizer of a folder, a Hub id or a .gguf file; ModelError if there is none, or if it has no EOS token."""
    folder = _find_folder(model_name_or_path)
    if not (folder / "tokenizer.json").is_file():
        folder = converted.folder_of(folder)
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # the library raises plain Exception; a panic of its Rust code is only a BaseException
        raise ModelError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return _describe(backend, folder, model_name_or_path)


def _find_folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ModelError(f"{name}: is a file; give a model folder, a Hub id or a .gguf file")
    if name.count("/") > 1 or name.startswith((".", "~", "/")) or path.suffix == ".gguf":
        raise ModelError(f"{name}: no such folder")
    with hub_errors(f"{name}: no such folder", advice="Give a folder, a .gguf file or a Hub id", kind=ModelError):
        return download_snapshot(name, [*FILES, *CONVERSION_FILES])


def _describe(backend: tokenizers.Tokenizer, folder: Path, name: str) -> Tokenizer:
    settings = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    named = token_texts(settings)
    if "eos_token" not in named:
        named |= _eos_by_id(backend, folder)
    eos = named.get("eos_token", "")
    if not eos or backend.token_to_id(eos) is None:
        what = f"its EOS token '{eos}' is not in its vocabulary" if eos else "it has no EOS token"
        raise ModelError(f"{name}: {what}. Set eos_token in {folder / 'tokenizer_config.json'}.")
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return Tokenizer(
        name=name,
        folder=str(folder),
        backend=backend,
        eos_token=eos,
        bos_token=_if_known(backend, named.get("bos_token", "")),
        pad_token=_if_known(backend, named.get("pad_token", "")),
        named_tokens=named,
        special_tokens=frozenset(special | {eos}),
        chat_template=_chat_template(folder, settings),
        fingerprint=_fingerprint(folder),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except DataError as error:
        raise ModelError(*error.problems) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def _if_known(backend: tokenizers.Tokenizer, token: str) -> str:
    return token if token and backend.token_to_id(token) is not None else ""


def _eos_by_id(backend: tokenizers.Tokenizer, folder: Path) -> dict[str, str]:
    """The EOS token whose id is in the model's config, if there is one."""
    for file in ("generation_config.json", "config.json"):
        value = _read(folder / file).get("eos_token_id")
        first = value[0] if isinstance(value, list) and value else value
        token = backend.id_to_token(first) if isinstance(first, int) else None
        if token:
            return {"eos_token": token}
    return {}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the entry in chat_template.json or tokenizer_config.json (the one named default)."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    value = _read(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict)]
        value = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return value if isinstance(value, str) and value else None


def _fingerprint(folder: Path) -> str:
    """Hash of everything that shapes tokens and text: the tokenizer and its settings."""
    digest = xxhash.xxh3_128()
    for file in FILES:
        path = folder / file
        if path.is_file():
            content = path.read_bytes()
            if file in ("config.json", "generation_config.json"):
                content = json.dumps(_read(path).get("eos_token_id")).encode()
            digest.update(f"{file}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()
