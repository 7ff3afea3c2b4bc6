"""Which records train, which validate, and which do neither; records that are left out are counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared import split as merging
from mftcoder.data.prepared.blocks import SPLIT, TRUNCATED, WHOLE, BlockReport, BlockRows
from mftcoder.data.prepared.columns import COLUMNS, TaskStatistics
from mftcoder.data.prepared.split import Tally, choose_held_out, merge_blocks, rank
from mftcoder.errors import DataError


@dataclass
class Record:
    """A record of content `content` in `pieces` samples of two tokens each."""

    content: int
    pieces: int = 1
    cut: int = WHOLE


def rows_of(records: Sequence[Record], first_line: int) -> BlockRows:
    samples = [(record, piece, first_line + n) for n, record in enumerate(records) for piece in range(record.pieces)]
    return BlockRows(
        tokens=np.array([token for record, _, _ in samples for token in (record.content, ~record.content)], np.int32),
        sizes=np.full(len(samples), 2, np.int32),
        trained=np.ones(len(samples), np.int32),
        hashes=np.array([record.content for record, _, _ in samples], np.uint64),
        lines=np.array([line for _, _, line in samples], np.int64),
        starts_record=np.array([piece == 0 for _, piece, _ in samples], bool),
        cut=np.array([record.cut for record, _, _ in samples], np.uint8),
        second=np.zeros(len(samples), np.int32),
        desirable=np.ones(len(samples), bool),
        reward=np.zeros(len(samples)),
        mean=np.zeros(len(samples)),
        deviation=np.ones(len(samples)),
    )


def config_of(tasks: dict[str, dict[str, Any]], **data: Any) -> RunConfig:
    named = {name: {"path": "p", **fields} for name, fields in tasks.items()}
    return RunConfig.model_validate({"model": "m", "tasks": named, "output_dir": "o", "data": {"val_size": 0, **data}})


class Merge:
    """Write records as block files and merge them; returns the lines of each split and the counts."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, 0

    def __call__(
        self, config: RunConfig, train: list[list[list[Record]]], validation: list[list[Record]] | None = None
    ) -> list[TaskStatistics]:
        """`train`: for each task its blocks; `validation`: for each task the records of its own validation files."""
        self.runs += 1
        self.target = self.folder / str(self.runs)
        tallies = []
        for task, blocks in enumerate(train):
            tally = Tally(BlockReport(records=sum(map(len, blocks))))
            start = 0
            for number, block in enumerate(blocks):
                path = self.folder / f"{self.runs}-{task}-{number}.npz"
                rows_of(block, start).save(path)
                tally.blocks["train"].append((number, path))
                start += len(block)
            if validation and validation[task]:
                path = self.folder / f"{self.runs}-{task}-given.npz"
                rows_of(validation[task], 100).save(path)
                tally.blocks["validation"].append((0, path))
            tallies.append(tally)
        return merge_blocks(config, tallies, self.target)

    def column(self, task: int, split: str, name: str) -> list[int]:
        return np.fromfile(self.target / f"{task}-{split}" / name, COLUMNS[name]).tolist()


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    return Merge(tmp_path)


def test_without_validation_every_record_trains_in_the_order_of_its_lines(merge: Merge) -> None:
    [counts] = merge(config_of({"a": {}}), [[[Record(7), Record(5)], [Record(9, pieces=2)]]])
    assert merge.column(0, "train", "lines") == [0, 1, 2, 2] and merge.column(0, "train", "files") == [0, 0, 1, 1]
    assert merge.column(0, "train", "tokens") == [7, ~7, 5, ~5, 9, ~9, 9, ~9]
    assert merge.column(0, "train", "ends") == [2, 4, 6, 8] and merge.column(0, "validation", "lines") == []
    assert (counts.records, counts.samples, counts.tokens, counts.trained_tokens) == (3, 4, 4, 4)


def test_a_held_out_content_validates_once_and_never_trains(merge: Merge) -> None:
    """Each content occurs twice: the first held-out one validates, the second is an overlap."""
    records = [Record(content) for content in (1, 2, 3, 4, 1, 2, 3, 4)]
    [counts] = merge(config_of({"a": {}}, val_size=0.5), [[records]])
    held_out = {token for token in merge.column(0, "validation", "tokens") if token > 0}
    trained = {token for token in merge.column(0, "train", "tokens") if token > 0}
    assert held_out | trained == {1, 2, 3, 4} and not held_out & trained and len(held_out) == 2
    assert (counts.validation_samples, counts.samples, counts.overlap, counts.duplicates) == (2, 4, 2, 4)


def test_a_content_held_out_in_one_task_does_not_train_in_another(merge: Merge) -> None:
    """The second task has its own validation data, so it holds nothing out."""
    config = config_of({"a": {}, "b": {"validation": "v"}}, val_size=0.5)
    _, second = merge(config, [[[Record(1), Record(2)]], [[Record(1), Record(2), Record(3)]]], [[], [Record(9)]])
    [held_out] = {token for token in merge.column(0, "validation", "tokens") if token > 0}
    assert {token for token in merge.column(1, "train", "tokens") if token > 0} == {1, 2, 3} - {held_out}
    assert (second.samples, second.overlap) == (2, 1)


def test_given_validation_files_are_used_completely_and_their_contents_do_not_train(merge: Merge) -> None:
    config = config_of({"a": {"validation": "v"}}, val_size=0.5)
    [counts] = merge(config, [[[Record(1), Record(2), Record(3)]]], [[Record(2), Record(8), Record(2)]])
    assert merge.column(0, "train", "lines") == [0, 2] and merge.column(0, "validation", "lines") == [100, 101]
    assert counts.overlap == 1


def test_all_pieces_of_a_record_go_the_same_way(merge: Merge) -> None:
    records = [Record(content, pieces=1 + content % 3, cut=SPLIT) for content in range(1, 20)]
    merge(config_of({"a": {}}, val_size=0.3), [[records[:7], records[7:]]])
    train, validation = (merge.column(0, split, "lines") for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(n for n, record in enumerate(records) for _ in range(record.pieces))


def test_cut_samples_are_counted_by_kind_in_what_trains(merge: Merge) -> None:
    records = [Record(1, cut=TRUNCATED), Record(2, pieces=3, cut=SPLIT), Record(3), Record(4, cut=TRUNCATED)]
    [counts] = merge(config_of({"a": {}}), [[records]])
    assert (counts.truncated, counts.split) == (2, 3)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_max_samples_uses_exactly_that_many_records_and_counts_the_others(merge: Merge, most: int) -> None:
    """Also with equal contents, whose ranks are equal."""
    records = [Record(content) for content in (5, 5, 5, 5, 1, 2, 3, 4)]
    [counts] = merge(config_of({"a": {"max_samples": most}}), [[records[:3], records[3:]]])
    assert (counts.samples, counts.unused) == (most, len(records) - most)


def test_the_choice_does_not_depend_on_the_order_of_blocks(merge: Merge) -> None:
    blocks = [[Record(content) for content in range(start, start + 5)] for start in (1, 6, 11)]
    config = config_of({"a": {"max_samples": 11}}, val_size=0.2)
    chosen = []
    for order in (blocks, blocks[::-1]):
        merge(config, [order])
        chosen.append([set(merge.column(0, split, "tokens")) for split in ("train", "validation")])
    assert chosen[0] == chosen[1] and chosen[0][1]


def test_a_task_with_nothing_to_train_on_is_an_error_with_counts(merge: Merge) -> None:
    config = config_of({"a": {"validation": "v"}, "b": {}})
    with pytest.raises(DataError) as raised:
        merge(config, [[[Record(1), Record(2)]], [[]]], [[Record(1), Record(2)], []])
    assert raised.value.problems == (
        "p: task 'a': no sample to train on (2 overlap)",
        "p: task 'b': no sample to train on (no record)",
    )


@given(st.sets(st.integers(0, 2**64 - 1), max_size=40), st.floats(0, 0.99), st.none() | st.integers(1, 50))
def test_the_held_out_contents_are_the_fraction_at_least_one_and_never_all(
    contents: set[int], share: float, most: int | None
) -> None:
    distinct = np.sort(np.array(list(contents), np.uint64))
    found = choose_held_out(distinct, share, most)
    assert set(found.tolist()) <= contents and (np.diff(found.astype(object)) > 0).all()
    if share == 0 or len(contents) < 2:
        assert len(found) == 0
    else:
        assert len(found) == min(max(round(share * len(contents)), 1), len(contents) - 1, most or len(contents))


def test_a_larger_fraction_keeps_the_held_out_contents_of_a_smaller_one() -> None:
    contents = np.arange(1000, dtype=np.uint64)
    small, large = (set(choose_held_out(contents, share, None).tolist()) for share in (0.05, 0.1))
    assert small < large


def test_sampling_and_holding_out_are_independent() -> None:
    """Two salts give two orders: of the half that comes first in one, about half comes first in the other."""
    hashes = np.arange(10_000, dtype=np.uint64)
    first, second = (rank(hashes, salt) < np.uint64(2**63) for salt in (merging._SAMPLING, merging._HOLDING_OUT))
    assert abs((first & second).mean() - 0.25) < 0.02
