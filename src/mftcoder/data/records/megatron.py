"""Megatron's indexed token files: `X.bin` has the token ids, `X.idx` says where each document begins. Read, checked and written.

X.idx, little-endian:

    9 bytes  magic b"MMIDIDX\\0\\0"       u64  version 1          u8  dtype code of the ids
    u64      N, number of sequences      u64  M, number of boundaries
    i32 [N]  tokens of each sequence     i64 [N]  its first byte in X.bin     i64 [M]  0, ..., N: the first sequence of each document

Beside them our writer leaves `X.json`, which identifies the vocabulary. The format itself has no word about the tokenizer.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from mftcoder.config.kinds import TOKENS_ENDING
from mftcoder.errors import DataError
from mftcoder.jsonl import atomic_path, read_json, write_json

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, type[np.generic]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_FLOATS = {6: "float32", 7: "float64"}
_UINT16_VOCABULARY = 65_500  # Megatron writes larger vocabularies as int32
_LONGEST_DOCUMENT = 1 << 24  # tokens
_PROBE = 1 << 20  # tokens that are searched for an EOS token


def index_path(given: Path) -> Path:
    """The `.idx` file that is meant by `X.idx`, by `X.bin`, or by the prefix `X`; `given` itself if there is none."""
    if given.is_file():
        index = given.with_suffix(TOKENS_ENDING) if given.suffix == ".bin" else given
    else:
        index = given.with_name(f"{given.name}{TOKENS_ENDING}")
    return index if index.is_file() else given


def tokens_path(index: Path) -> Path:
    """The `.bin` file of an index."""
    return index.with_suffix(".bin")


@dataclass(frozen=True)
class TokenFile:
    """The documents of one indexed file. `ends` [D] is the token after each document."""

    index: Path
    dtype: type[np.generic]
    ends: NDArray[np.int64]

    @classmethod
    def open(cls, index: Path) -> "TokenFile":
        """DataError, one line, if this is not such a file, if it is damaged, or if the two files do not belong together."""
        try:
            content = index.read_bytes()
            size = tokens_path(index).stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{index}: {error.filename} is missing: both files are needed") from error
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        dtype, sizes, pointers, boundaries = _parse(index, content)
        _check(index, np.dtype(dtype).itemsize, sizes, pointers, boundaries, size)
        return cls(index, dtype, _document_ends(sizes, boundaries))

    @cached_property
    def ids(self) -> NDArray[Any]:
        """All token ids, read from disk on demand."""
        empty = not len(self.ends) or not self.ends[-1]
        return np.empty(0, self.dtype) if empty else np.memmap(tokens_path(self.index), self.dtype, "r")

    def documents(self) -> Iterator[NDArray[Any]]:
        start = 0
        for end in self.ends.tolist():
            yield np.asarray(self.ids[start:end])
            start = end

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """Each document as a record `{"input_ids": [...]}`, and the bytes of X.bin up to its end."""
        itemsize = np.dtype(self.dtype).itemsize
        for ids, end in zip(self.documents(), self.ends.tolist(), strict=True):
            yield orjson.dumps({"input_ids": ids}, option=orjson.OPT_SERIALIZE_NUMPY), end * itemsize

    @property
    def vocabulary(self) -> str | None:
        """The fingerprint of the vocabulary that the ids are of, if our writer made the file."""
        path = self.index.with_suffix(".json")
        found = read_json(path) if path.is_file() else None
        return found.get("vocabulary") if isinstance(found, dict) else None

    def has_near_start(self, token: int) -> bool:
        """Whether this id is among the first million."""
        return bool((self.ids[:_PROBE] == token).any())


def vocabulary_fingerprint(vocabulary: dict[str, int]) -> str:
    """128 bits over the tokens and their ids."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(sorted(vocabulary.items())))


def _parse(index: Path, content: bytes) -> tuple[type[np.generic], NDArray, NDArray, NDArray]:
    """The dtype of the ids, the sizes [N], the pointers [N] and the boundaries [M]."""
    if content[: len(_MAGIC)] != _MAGIC[: len(content)] or not content:
        raise DataError(f"{index}: is not the index of a Megatron token file: it does not begin with MMIDIDX")
    if len(content) < _HEADER.size:
        raise DataError(f"{index}: is cut off: {len(content)} bytes, the header alone has {_HEADER.size}")
    _, version, code, num_sequences, num_boundaries = _HEADER.unpack_from(content)
    if version != 1:
        raise DataError(f"{index}: has version {version} of the format; version 1 is known")
    if code not in _DTYPES:
        what = f"are {_FLOATS[code]}, not token ids" if code in _FLOATS else f"have the unknown dtype code {code}"
        raise DataError(f"{index}: its numbers {what}")
    expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if len(content) != expected:
        what = "is cut off" if len(content) < expected else "goes on after its end"
        raise DataError(f"{index}: {what}: {len(content):,} bytes, {expected:,} by its header")
    sizes = np.frombuffer(content, "<i4", num_sequences, _HEADER.size)
    pointers = np.frombuffer(content, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
    return _DTYPES[code], sizes, pointers, np.frombuffer(content, "<i8", offset=_HEADER.size + 12 * num_sequences)


def _check(index: Path, itemsize: int, sizes: NDArray, pointers: NDArray, boundaries: NDArray, size: int) -> None:
    lengths = sizes.astype(np.int64) * itemsize
    if (sizes < 0).any() or not np.array_equal(pointers, np.cumsum(lengths) - lengths):
        raise DataError(f"{index}: is damaged: its sequences do not follow each other without a gap")
    if lengths.sum() != size:
        what = "is cut off" if size < lengths.sum() else "is longer than its index says"
        raise DataError(f"{tokens_path(index)}: {what}: {size:,} bytes, {int(lengths.sum()):,} by its index")
    if (np.diff(boundaries) < 0).any() or (len(boundaries) and (boundaries[0] != 0 or boundaries[-1] > len(sizes))):
        raise DataError(f"{index}: is damaged: the first sequences of its documents are not in order")


def _document_ends(sizes: NDArray, boundaries: NDArray) -> NDArray[np.int64]:
    """The token after each document [D]. Where no documents are marked, or one is very long, each sequence is a document."""
    ends = np.cumsum(sizes, dtype=np.int64)
    if not len(boundaries) or boundaries[-1] != len(sizes):
        return ends
    documents = np.concatenate([np.zeros(1, np.int64), ends])[boundaries[1:]]
    return ends if np.diff(documents, prepend=0).max(initial=0) > _LONGEST_DOCUMENT else documents


def write_token_file(prefix: Path, documents: Iterable[NDArray], vocabulary: dict[str, int]) -> tuple[int, int]:
    """Write PREFIX.bin, PREFIX.idx and PREFIX.json, one sequence a document; returns the numbers of documents and tokens."""
    code = 8 if max(vocabulary.values()) + 1 < _UINT16_VOCABULARY else 4
    sizes: list[int] = []
    index = prefix.with_name(f"{prefix.name}{TOKENS_ENDING}")
    with atomic_path(index) as temporary_index, atomic_path(tokens_path(index)) as temporary:
        with temporary.open("wb") as file:
            for ids in documents:
                file.write(ids.astype(_DTYPES[code]).tobytes())
                sizes.append(len(ids))
        temporary_index.write_bytes(_index(code, np.array(sizes, np.int32)))
    write_json(index.with_suffix(".json"), {"vocabulary": vocabulary_fingerprint(vocabulary)})
    return len(sizes), sum(sizes)


def _index(code: int, sizes: NDArray[np.int32]) -> bytes:
    lengths = sizes.astype("<i8") * np.dtype(_DTYPES[code]).itemsize
    boundaries = np.arange(len(sizes) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, 1, code, len(sizes), len(boundaries))
    pointers = (np.cumsum(lengths) - lengths).astype("<i8")
    return header + sizes.astype("<i4").tobytes() + pointers.tobytes() + boundaries.tobytes()
