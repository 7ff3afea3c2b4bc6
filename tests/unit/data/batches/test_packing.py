import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.data.batches.packing import assemble, one_per_row, pack, pack_best_fit
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.errors import DataError


def sample(length: int, task: int = 0) -> TokenizedSample:
    return TokenizedSample(
        task, np.arange(1, length + 1, dtype=np.int32), np.arange(2, length + 2, dtype=np.int32), "x:1"
    )


def rows_by_the_book(lengths: list[int], row_length: int) -> list[int]:
    """Best-fit decreasing, one sample at a time: the fills of its rows, sorted."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(row_length - length)
    return sorted(row_length - left for left in room)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 60))
def test_packing_in_groups_is_best_fit_decreasing(lengths: list[int], row_length: int) -> None:
    array = np.array(lengths, np.int32)
    plan = pack_best_fit(array, row_length)
    assert sorted(plan.members.tolist()) == list(range(len(lengths)))
    assert sorted(plan.sums(array).tolist()) == rows_by_the_book(lengths, row_length)


def test_the_worked_example_of_the_docstring() -> None:
    lengths = np.array([5, 3, 2, 4, 2])
    plan = pack_best_fit(lengths, 8)
    assert [sorted(lengths[plan.row(row)].tolist()) for row in range(len(plan))] == [[3, 5], [2, 2, 4]]


def test_a_million_samples_are_packed_in_seconds_and_fill_98_percent() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(350), 0.8, 1_000_000), 1, 4096).astype(np.int32)
    start = time.process_time()
    plan = pack_best_fit(lengths, 4096)
    assert (
        time.process_time() - start < 20
    )  # about half a second on one idle core; the bound only catches a wrong order of growth
    assert plan.fill(lengths, 4096) > 0.98


@pytest.mark.parametrize("length", [0, 9])
def test_a_length_that_fits_no_row_is_a_value_error(length: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.8"):
        pack_best_fit(np.array([length]), 8)


def test_no_samples_give_no_rows() -> None:
    assert len(pack_best_fit(np.empty(0, np.int32), 8)) == len(one_per_row(0)) == 0


def test_an_assembled_row_restarts_positions_and_marks_padding() -> None:
    row = assemble([sample(3, task=1), sample(2, task=0)], 8)
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row.task_ids.tolist() == [1, 1, 1, 0, 0, -1, -1, -1]
    assert row.segment_lengths.tolist() == [3, 2, 3]
    assert row.targets.tolist() == [2, 3, 4, 2, 3, -100, -100, -100]
    assert row.input_ids[:5].tolist() == [1, 2, 3, 1, 2]


def test_a_full_row_has_no_padding_segment_and_an_overfull_one_is_refused() -> None:
    assert assemble([sample(5), sample(3)], 8).segment_lengths.tolist() == [5, 3]
    with pytest.raises(ValueError, match="9 positions"):
        assemble([sample(5), sample(4)], 8)


@pytest.mark.parametrize("lengths", [[2, 9], [0], [-1], [1.5], ["2"]])
def test_a_length_that_does_not_fit_a_row_is_named(lengths):
    with pytest.raises(
        DataError, match=rf"lengths\[{len(lengths) - 1}\]: must be a whole number between 1 and the row length 8"
    ):
        pack(lengths, 8)


def test_packing_takes_numpy_numbers_and_no_samples():
    assert pack(np.array([5, 3]), np.int64(8)) == [[0, 1]] and pack([], 8) == []
