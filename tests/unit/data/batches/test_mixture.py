import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.data.batches.mixture import Mixture, StepPlan

COUNTS = [7, 100, 33]


def pairs(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int]]:
    tasks, rows = mixture.take(start, stop)
    return list(zip(tasks.tolist(), rows.tolist(), strict=True))


def every_row(counts: list[int]) -> Counter[tuple[int, int]]:
    return Counter((task, row) for task, count in enumerate(counts) for row in range(count))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.integers(0, 5), st.integers(0, 2**32))
def test_proportional_sampling_visits_every_row_exactly_once_per_epoch(
    counts: list[int], epoch: int, seed: int
) -> None:
    mixture = Mixture(counts, seed=seed)
    size = mixture.epoch_rows
    assert Counter(pairs(mixture, epoch * size, (epoch + 1) * size)) == every_row(counts)


def test_epochs_and_seeds_differ_in_their_order() -> None:
    orders = {tuple(pairs(Mixture(COUNTS, seed=seed), start, start + 140)) for seed in (1, 2) for start in (0, 140)}
    assert len(orders) == 4


@given(
    st.integers(0, 1000), st.integers(0, 300), st.sampled_from(["proportional", "uniform", "temperature", "weights"])
)
def test_any_range_of_the_stream_is_read_without_replay(start: int, length: int, sampling: str) -> None:
    def fresh() -> Mixture:
        return Mixture(COUNTS, sampling=sampling, temperature=3.0, weights=[1, 0.25, 3], seed=5)  # type: ignore[arg-type]

    assert pairs(fresh(), 0, start + length)[start:] == pairs(fresh(), start, start + length)


def test_a_tasks_rows_are_spread_evenly_over_an_epoch() -> None:
    tasks, _ = Mixture([1000, 100], seed=3).take(0, 1100)
    quarters = [np.count_nonzero(part == 1) for part in np.split(tasks, 4)]
    assert max(quarters) - min(quarters) <= 2


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("temperature", np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()),
        ("weights", np.array([1, 0.25, 3]) / 4.25),
    ],
)
def test_long_run_fractions_are_exact_to_a_row(sampling: str, expected: np.ndarray) -> None:
    mixture = Mixture(COUNTS, sampling=sampling, temperature=2.0, weights=[1, 0.25, 3], seed=9)  # type: ignore[arg-type]
    for cycles in (1, 2, 7):
        tasks, _ = mixture.take(0, cycles * mixture.cycle_rows)
        drawn = np.bincount(tasks, minlength=3)
        assert np.abs(drawn - np.array(expected) * len(tasks)).max() < 1 + 1e-6


def test_an_oversampled_task_goes_through_its_own_epochs() -> None:
    mixture = Mixture([5, 500], sampling="uniform", seed=1)
    tasks, rows = mixture.take(0, 200)
    small = rows[tasks == 0]
    for epoch in range(len(small) // 5):
        assert sorted(small[epoch * 5 : epoch * 5 + 5].tolist()) == [0, 1, 2, 3, 4]


def test_a_rare_task_and_an_empty_task_are_allowed() -> None:
    mixture = Mixture([10, 10, 0], sampling="weights", weights=[1e-4, 1, 1], seed=1)
    tasks, _ = mixture.take(0, 3 * mixture.cycle_rows)
    assert np.bincount(tasks, minlength=3)[2] == 0
    assert abs(np.count_nonzero(tasks == 0) - 1e-4 / 1.0001 * len(tasks)) < 1 + 1e-6
    with pytest.raises(ValueError, match="no task"):
        Mixture([0, 0])


def test_a_pickled_mixture_continues_in_the_same_way() -> None:
    mixture = Mixture(COUNTS, seed=4)
    mixture.take(0, 10)
    assert pairs(pickle.loads(pickle.dumps(mixture)), 50, 90) == pairs(mixture, 50, 90)


def step_plan(*, batch_size: int = 2, accumulation: int = 3, world_size: int = 1, grouped: bool = False) -> StepPlan:
    lengths = tuple(
        np.random.default_rng(task).integers(1, 100, count).astype(np.int32) for task, count in enumerate(COUNTS)
    )
    return StepPlan(
        Mixture(COUNTS, seed=2),
        batch_size,
        accumulation,
        world_size,
        total_rows=140,
        lengths=lengths if grouped else None,
    )


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world_size"), [(1, 1, 1), (2, 3, 1), (3, 2, 4), (4, 1, 3), (100, 2, 1)]
)
def test_an_epoch_of_steps_and_ranks_has_every_row_once(
    batch_size: int, accumulation: int, world_size: int, grouped: bool
) -> None:
    plan = step_plan(batch_size=batch_size, accumulation=accumulation, world_size=world_size, grouped=grouped)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(plan.total_steps):
        tasks, rows = plan.step(step)
        shares = [plan.micro_batches(len(tasks), rank) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1, "all ranks run the same number of micro-batches"
        for part in (part for share in shares for part in share):
            assert part.stop - part.start <= batch_size
            seen.update(zip(tasks[part].tolist(), rows[part].tolist(), strict=True))
    assert seen == every_row(COUNTS)


def test_a_steps_set_of_rows_does_not_depend_on_how_it_is_split() -> None:
    whole, split = step_plan(batch_size=12, accumulation=1), step_plan(batch_size=2, accumulation=3, world_size=2)
    for step in range(whole.total_steps):
        assert np.array_equal(whole.step(step), split.step(step))


def test_grouping_makes_micro_batches_of_similar_length() -> None:
    def padding(plan: StepPlan) -> int:
        wasted = 0
        lengths = step_plan(grouped=True).lengths or ()
        for step in range(plan.total_steps):
            tasks, rows = plan.step(step)
            sizes = np.array([lengths[task][row] for task, row in zip(tasks, rows, strict=True)])
            wasted += sum(int((sizes[part].max() - sizes[part]).sum()) for part in plan.micro_batches(len(tasks), 0))
        return wasted

    assert padding(step_plan(grouped=True)) < 0.3 * padding(step_plan(grouped=False))
