"""Pace: the estimates of its filter, its cost, and that tasks reach their best together."""

from collections.abc import Callable

import numpy as np
import pytest

from mftcoder.balancing.base import RunFacts, TaskBalancer, TaskLosses
from mftcoder.balancing.methods.coba import CobaBalancer, CobaOptions
from mftcoder.balancing.methods.pace import PaceBalancer, PaceOptions
from mftcoder.balancing.methods.uniform import UniformBalancer
from mftcoder.balancing.trend import LossTrend
from mftcoder.config.balancer import BalancerConfig


def test_filter_finds_a_straight_line_exactly_without_noise() -> None:
    trend = LossTrend(0, window=50)
    for step in range(1, 200):
        trend.add_train_loss(step, 3.0 - 0.01 * step, samples=4)
    assert trend.slope == pytest.approx(-0.01, rel=1e-3)
    assert trend.level == pytest.approx(3.0 - 0.01 * 199, abs=1e-3)


def test_filter_states_its_own_error_rightly() -> None:
    """Over many noisy lines the squared slope errors over the stated variance average about 1."""
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        trend = LossTrend(0, window=300)
        for step in range(1, 151):
            trend.add_train_loss(step, 2.0 - 0.002 * step + 0.1 * rng.standard_normal(), samples=4)
        scores.append((trend.slope + 0.002) ** 2 / trend.slope_variance)
    assert 0.4 < np.mean(scores) < 2.0


def test_how_hard_a_row_is_does_not_enter_the_slope() -> None:
    rng = np.random.default_rng(1)
    hardness = np.array([0.0, 1.5, -0.8])
    trend = LossTrend(3, window=100)
    for step in range(1, 101):
        trend.add_train_loss(step, 2.0 + 0.1 * rng.standard_normal(), samples=4)
        if step % 5 == 0:
            row = step // 5 % 3
            trend.add_row_loss(step, row, 2.0 + hardness[row] + 0.005 * rng.standard_normal())
    for step in range(105, 400, 5):  # after the first epoch there are only rows
        row = step // 5 % 3
        trend.add_row_loss(step, row, 2.0 - 0.003 * (step - 100) + hardness[row] + 0.005 * rng.standard_normal())
    assert trend.slope == pytest.approx(-0.003, rel=0.1)


def test_an_unobserved_filter_grows_uncertain() -> None:
    trend = LossTrend(0, window=30)
    for step in range(1, 40):
        trend.add_train_loss(step, 2.0 + 0.1 * (step % 2), samples=4)
    before = trend.slope_variance
    trend.advance(400)
    assert trend.slope_variance > 10 * before


@pytest.mark.parametrize(("rows_per_step", "steps"), [(4, 300), (8, 1000), (32, 3000), (256, 5000)])
def test_validation_rows_stay_within_their_share_of_the_compute(
    facts: Callable, rows_per_step: int, steps: int
) -> None:
    run = facts(5, total_steps=steps, rows_per_step=rows_per_step)
    balancer = PaceBalancer(PaceOptions(), run)
    asked = [row for step in range(1, steps + 1) if balancer.due(step) for row in balancer.validation_rows(step)]
    share = len(asked) / 2 / (rows_per_step * steps)
    assert 0 < share <= 0.015
    if rows_per_step < 32:  # larger steps are capped at a row of each task an observation
        assert share > 0.014
        visits = np.bincount([row.task for row in asked], minlength=5)
        assert visits.max() - visits.min() <= 1


def test_val_share_zero_needs_no_validation_rows(facts: Callable) -> None:
    balancer = PaceBalancer(PaceOptions(val_share=0.0), facts(3, validation_rows=np.zeros(3, int)))
    assert not any(balancer.validation_rows(step) for step in range(1, 100))


@pytest.mark.parametrize("first_seen", [1, 12])
def test_a_task_that_was_measured_once_keeps_its_configured_weight(
    facts: Callable, losses: Callable, first_seen: int
) -> None:
    """Without validations, directly after the warm-up: no measurement shows yet how fast the task's loss falls."""
    balancer = PaceBalancer(PaceOptions(warmup_steps=0, val_share=0.0), facts(2))
    for step in range(1, first_seen + 1):
        weights = balancer.observe(step, losses([np.nan, 2.0 if step == first_seen else np.nan]), None)
    assert weights.values == pytest.approx([0.5, 0.5])
    balancer.observe(first_seen + 1, losses([2.0, 1.9]), None)
    assert np.isfinite(balancer.observe(first_seen + 2, losses([1.9, 1.7]), None).values).all()


def test_losses_of_samples_seen_before_are_not_looked_at(facts: Callable, losses: Callable) -> None:
    run = facts(2, fresh_steps=np.array([20, 20]))
    balancer = PaceBalancer(PaceOptions(), run)
    for step in range(1, 21):
        balancer.observe(step, losses([2.0 - 0.01 * step, 1.5]), None)
    level, slope = balancer.signals["level"], balancer.signals["slope"]
    balancer.observe(21, losses([0.1, 0.1]), None)
    np.testing.assert_allclose(
        balancer.signals["level"], level + slope, atol=0.03 * 0.01
    )  # the slope bends by a step in 22


def test_the_runs_own_validation_is_taken_in(facts: Callable, losses: Callable) -> None:
    """Train losses count in the first epoch only. Later only the validation shows that a task is past its best."""
    run = facts(2, total_steps=400, fresh_steps=np.full(2, 40), validation_rows=np.zeros(2, int))
    deaf, hearing = (PaceBalancer(PaceOptions(update_interval=1), run) for _ in range(2))
    for step in range(1, 401):
        means = np.array([3.0 - np.log(step) / 4, 3.0 - np.log(step) / 4])
        deaf_weights, weights = (balancer.observe(step, losses(means), None).values for balancer in (deaf, hearing))
        if step % 20 == 0:
            worse = means + np.array([0.0, max(step - 200, 0) / 200])
            hearing.evaluated(step, losses(worse))
    np.testing.assert_allclose(deaf_weights, [0.5, 0.5], atol=0.02)
    assert weights[0] > 0.8


def mean_weight(facts: Callable, losses: Callable, first_error: float, *, validated: bool) -> float:
    """Mean weight of task 0 after the warm-up. The two tasks differ only in the first batch of task 0."""
    run = facts(2, total_steps=200, fresh_steps=np.full(2, 200), validation_rows=np.zeros(2, int))
    balancer, rng, weights = PaceBalancer(PaceOptions(), run), np.random.default_rng(0), []
    for step in range(201):
        truth = np.full(2, 1 + 0.8 * np.exp(-3 * step / 200))
        noise = 0.15 * rng.choice([-1, 1], 2) if step > 1 else np.array([first_error, 0.0])
        if step:
            weights.append(balancer.observe(step, losses(truth + noise), None).values[0])
        if validated and step % 10 == 0:
            balancer.evaluated(step, losses(truth))
    return float(np.mean(weights[20:]))


@pytest.mark.parametrize(("validated", "most"), [(True, 0.05), (False, 0.2)])
def test_weights_do_not_follow_the_luck_of_the_first_batch(
    facts: Callable, losses: Callable, validated: bool, most: float
) -> None:
    """If the drop began at the raw first loss, the two runs would differ by 0.52 and 0.46."""
    unlucky, lucky = (mean_weight(facts, losses, error, validated=validated) for error in (0.4, -0.4))
    assert abs(unlucky - lucky) < most


def test_the_drop_is_known_with_its_variance() -> None:
    """Over many noisy falls the squared errors of the drop over the stated variance average about 1."""
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        trend = LossTrend(0, window=100)
        for step in range(1, 151):
            trend.add_train_loss(step, 2.0 - 0.004 * step + 0.1 * rng.standard_normal(), samples=4)
        scores.append((trend.drop - 0.004 * 149) ** 2 / trend.drop_variance)
    assert 0.4 < np.mean(scores) < 2.0


def test_a_validation_before_the_first_step_is_where_the_drop_begins() -> None:
    """The validation set can be harder than the training data: only its change counts."""
    trend = LossTrend(0, window=100)
    trend.add_set_loss(0, 3.5, samples=1000)
    for step in range(1, 101):
        trend.add_train_loss(step, 2.0 - 0.005 * step + (0.5 if step == 1 else 0.0), samples=4)
    trend.add_set_loss(100, 3.0, samples=1000)
    assert trend.drop == pytest.approx(0.5, abs=0.01)
    assert trend.level == pytest.approx(1.5, abs=0.02)


def test_a_task_past_its_best_falls_to_the_floor_and_a_slow_one_gains(facts: Callable, losses: Callable) -> None:
    run = facts(3, total_steps=200, fresh_steps=np.full(3, 200))
    balancer = PaceBalancer(PaceOptions(floor=0.03), run)
    time = np.arange(1, 201)
    turning = 1.5 - np.minimum(time, 80) / 100 + np.maximum(time - 80, 0) / 200  # best at step 80
    curves = np.stack([turning, 2.0 - time / 300, 2.0 - time / 300], axis=1)
    for step in time:
        weights = balancer.observe(int(step), losses(curves[step - 1]), None).values
    assert weights[0] < 0.02
    assert (weights[1:] > 0.45).all()


def test_weights_return_to_the_configured_ones_when_nothing_is_known_any_more(
    facts: Callable, losses: Callable
) -> None:
    run = facts(2, total_steps=4000, fresh_steps=np.full(2, 500), validation_rows=np.zeros(2, int))
    balancer = PaceBalancer(PaceOptions(update_interval=1, window=600), run)
    rng = np.random.default_rng(0)
    for step in range(1, 4001):
        means = np.array([1.0 + np.exp(-step / 100), 2.5 - np.log(step) / 4]) + 0.02 * rng.standard_normal(2)
        weights = balancer.observe(step, losses(means), None).values
        if step == 500:
            assert weights[1] > 0.65
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=0.08)


def simulate(make: Callable[[RunFacts], TaskBalancer], seed: int) -> np.ndarray:
    """True held-out losses [steps + 1, K] of four tasks whose progress follows their weight; the last one never learns."""
    rng, steps = np.random.default_rng(seed), 300
    rate, drop, turn = np.array([9.0, 4.0, 1.5, 3.0]), np.array([0.5, 0.6, 0.4, 0.0]), np.array([2.5, 3.0, 3.0, 9.0])
    hardness = 0.3 * rng.standard_normal((4, 6))
    run = RunFacts(np.ones(4), seed, steps, 8, np.full(4, steps // 3), np.full(4, 6))
    balancer, weights, progress = make(run), np.full(4, 0.25), np.zeros(4)

    def truth() -> np.ndarray:
        return 1.0 + drop * np.exp(-progress) + 0.03 * np.where(drop > 0, np.maximum(progress - turn, 0), 0.0) ** 1.5

    curves, summed = [truth()], TaskLosses.zeros(4)
    for step in range(1, steps + 1):
        noise = 0.08 * rng.standard_normal(4)
        optimism = 0.05 * progress * max(3 * step / steps - 1, 0)  # seen samples look better than they are
        count = np.full(4, 100)
        summed = summed + TaskLosses((truth() + noise - optimism) * count, count, np.full(4, 4))
        progress = progress + rate / steps * (4 * weights) ** 0.8
        if balancer.due(step):
            rows = balancer.validation_rows(step)
            found, tokens = np.zeros(4), np.zeros(4, int)
            for row in rows:
                found[row.task] += 50 * (truth()[row.task] + hardness[row.task, row.row] + 0.02 * rng.standard_normal())
                tokens[row.task] += 50
            weights = balancer.observe(step, summed, TaskLosses(found, tokens, tokens) if rows else None).values
            summed = TaskLosses.zeros(4)
        curves.append(truth())
    return np.array(curves)


def regret(curves: np.ndarray) -> float:
    """Mean distance of the learning tasks from their own best at the best common step, as a fraction of what they gained."""
    learning = curves[:, :3]
    common = learning.mean(axis=1).argmin()
    return float(((learning[common] - learning.min(axis=0)) / (learning[0] - learning.min(axis=0))).mean())


def test_brings_simulated_tasks_to_their_best_together() -> None:
    """Distance from the own best at the common best step, over eight seeds: for Pace less than half of uniform's, and less than CoBa's."""
    found = {}
    for name, make in {
        "uniform": lambda run: UniformBalancer(BalancerConfig(), run),
        "coba": lambda run: CobaBalancer(CobaOptions(warmup_steps=10, window=50), run),
        "pace": lambda run: PaceBalancer(PaceOptions(), run),
    }.items():
        found[name] = np.mean([regret(simulate(make, seed)) for seed in range(8)])
    assert found["pace"] < 0.5 * found["uniform"]
    assert found["pace"] < found["coba"]
