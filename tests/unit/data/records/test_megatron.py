"""Megatron's token files: written and read again, in every layout that other programs write, and refused where they are damaged."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mftcoder.data.records.megatron import TokenFile, index_path, write_token_file
from mftcoder.errors import DataError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def write(
    folder: Path,
    *,
    sequences: Sequence[Sequence[int]] = DOCUMENTS,
    boundaries: Sequence[int] | None = None,
    code: int = 8,
    dtype: str = "<u2",
    magic: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    change: Callable[[bytes], bytes] = bytes,
    change_tokens: Callable[[bytes], bytes] = bytes,
) -> Path:
    """The two files, byte by byte, independent of our writer."""
    sizes = [len(one) for one in sequences]
    width = int(dtype[-1])
    pointers = [width * sum(sizes[:index]) for index in range(len(sizes))]
    bounds = list(range(len(sizes) + 1)) if boundaries is None else list(boundaries)
    content = magic + struct.pack("<QBQQ", version, code, len(sizes), len(bounds))
    content += struct.pack(f"<{len(sizes)}i{len(sizes)}q{len(bounds)}q", *sizes, *pointers, *bounds)
    (folder / "x_input_ids.idx").write_bytes(change(content))
    ids = np.array([one for sequence in sequences for one in sequence], dtype)
    (folder / "x_input_ids.bin").write_bytes(change_tokens(ids.tobytes()))
    return folder / "x_input_ids.idx"


def read(index: Path) -> list[list[int]]:
    return [ids.tolist() for ids in TokenFile.open(index).documents()]


@pytest.mark.parametrize(("code", "dtype"), [(1, "|u1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_token_files_of_every_dtype_are_read(tmp_path: Path, code: int, dtype: str) -> None:
    assert read(write(tmp_path, code=code, dtype=dtype)) == DOCUMENTS


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        ([0, 1, 2, 3], DOCUMENTS),
        ([0, 2, 3], [[5, 6, 7, 8], [9, 10, 11, 12]]),
        ([0, 3], [[5, 6, 7, 8, 9, 10, 11, 12]]),
        ([0], DOCUMENTS),  # the writer never ended a document
        ([], DOCUMENTS),
    ],
)
def test_the_sequences_of_a_document_are_joined(
    tmp_path: Path, boundaries: list[int], expected: list[list[int]]
) -> None:
    assert read(write(tmp_path, boundaries=boundaries)) == expected


@pytest.mark.parametrize(("vocabulary_size", "code", "width"), [(1000, 8, 2), (65_499, 8, 2), (65_500, 4, 4)])
def test_written_files_have_the_published_layout(tmp_path: Path, vocabulary_size: int, code: int, width: int) -> None:
    """Byte for byte what the layout says, with 16 bits for each id where the vocabulary allows it."""
    vocabulary = {str(number): number for number in (0, vocabulary_size - 1)}
    documents = [np.array(one, np.int32) for one in DOCUMENTS]
    assert write_token_file(tmp_path / "ours", documents, vocabulary) == (3, 8)
    by_hand = write(tmp_path, code=code, dtype=f"<{'u' if width == 2 else 'i'}{width}")
    assert (tmp_path / "ours.idx").read_bytes() == by_hand.read_bytes()
    assert (tmp_path / "ours.bin").read_bytes() == by_hand.with_suffix(".bin").read_bytes()
    assert read(tmp_path / "ours.idx") == DOCUMENTS


def test_a_file_without_documents_is_read(tmp_path: Path) -> None:
    assert read(write(tmp_path, sequences=[])) == []
    assert read(write(tmp_path, sequences=[[], []])) == [[], []]


def test_index_tokens_and_prefix_name_the_same_files(tmp_path: Path) -> None:
    index = write(tmp_path)
    for given in (index, index.with_suffix(".bin"), index.with_suffix("")):
        assert index_path(given) == index
    other = tmp_path / "model.bin"
    other.write_bytes(b"x")
    assert index_path(other) == other


BAD = {
    "is not the index of a Megatron token file": {"magic": b"TNTIDX\x00\x00\x00"},
    "has version 2": {"version": 2},
    "are float32, not token ids": {"code": 6},
    "unknown dtype code 77": {"code": 77},
    "idx: is cut off: 20 bytes, the header alone has 34": {"change": lambda content: content[:20]},
    "idx: is cut off: 101 bytes, 102 by its header": {"change": lambda content: content[:-1]},
    "idx: goes on after its end": {"change": lambda content: content + b"\0"},
    "idx: is not the index": {"change": lambda _: b""},
    "bin: is cut off: 15 bytes, 16 by its index": {"change_tokens": lambda content: content[:-1]},
    "bin: is longer than its index says: 17 bytes": {"change_tokens": lambda content: content + b"\0"},
    "do not follow each other without a gap": {"code": 4},
    "its documents are not in order": {"boundaries": [0, 2, 1, 3]},
    "documents are not in order": {"boundaries": [1, 2, 3]},
    "are not in order": {"boundaries": [0, 1, 4]},
}


@pytest.mark.parametrize("problem", BAD)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path: Path, problem: str) -> None:
    index = write(tmp_path, **BAD[problem])  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        TokenFile.open(index)
    (line,) = caught.value.problems
    assert problem in line and line.startswith(str(tmp_path)) and "\n" not in line


def test_an_index_without_its_tokens_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path)
    index.with_suffix(".bin").unlink()
    with pytest.raises(DataError, match="bin is missing: both files are needed"):
        TokenFile.open(index)
