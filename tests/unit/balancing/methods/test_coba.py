"""CoBa compared with its formulas written out here, and the purpose of the formulas."""

from collections.abc import Callable

import numpy as np
import pytest

from mftcoder.balancing.methods.coba import CobaBalancer, CobaOptions, least_squares_slope

STEPS, WARMUP, WINDOW, TAU = 24, 4, 9, 5.0
TIME = np.arange(1, STEPS + 1)
HISTORY = np.stack(
    [
        2.0 * np.exp(-TIME / 5),  # fast
        2.0 - 0.02 * TIME,  # slow
        1.0 - 0.3 * np.exp(-(((TIME - 8) / 6) ** 2)) + 0.01 * TIME,  # falls, then diverges
        np.full(STEPS, 1.3),  # flat
    ],
    axis=1,
)  # [steps, K]
BEFORE = np.array([2.5, 2.2, 1.1, 1.4])  # the whole validation set before the first step


def run(facts: Callable, losses: Callable, history: np.ndarray, **options: object) -> np.ndarray:
    config = CobaOptions(**{"warmup_steps": WARMUP, "window": WINDOW, **options})
    balancer = CobaBalancer(config, facts(history.shape[1]))
    balancer.evaluated(0, losses(BEFORE[: history.shape[1]]))
    steps = [step for step in range(1, len(history) + 1) if balancer.due(step)]
    return np.stack(
        [balancer.observe(step, losses(history[step - 1]), losses(history[step - 1])).values for step in steps]
    )


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum()


def slopes_at(curves: np.ndarray, step: int) -> np.ndarray:
    """(n sum xy - sum x sum y) / (n sum xx - (sum x)^2) over the last WINDOW points up to `step` (1-based); a flat curve's is 0."""
    x = np.arange(max(1, step - WINDOW + 1), step + 1)
    y = curves[x - 1]
    n = len(x)
    return (n * np.tensordot(x, y, axes=1) - x.sum() * y.sum(axis=0)) / (n * (x @ x) - x.sum() ** 2)


def test_weights_equal_the_papers_formulas(facts: Callable, losses: Callable) -> None:
    ratios = HISTORY / HISTORY[0]
    tasks = HISTORY.shape[1]
    alphas: list[np.ndarray] = []
    expected = np.full((STEPS, tasks), 1 / tasks)
    for step in range(WARMUP, STEPS + 1):
        alphas.append(slopes_at(ratios, step))
        now, window = alphas[-1], np.array(alphas[-WINDOW:])
        relative = softmax(tasks * now / np.abs(now).sum())
        travelled = np.abs(window).sum(axis=0)
        absolute = softmax(-len(window) * np.where(travelled > 0, now / np.where(travelled > 0, travelled, 1.0), 0.0))
        worst = np.array([alpha.max() for alpha in alphas])
        over_time = softmax(-TAU * len(worst) * worst / max(np.abs(worst).sum(), 1e-300))
        factor = min(len(worst) * over_time[-1], 1.0)
        expected[step - 1] = factor * relative + (1 - factor) * absolute
    np.testing.assert_allclose(run(facts, losses, HISTORY), expected, rtol=0, atol=1e-9)


def test_weights_equal_the_released_arithmetic(facts: Callable, losses: Callable) -> None:
    history = HISTORY[:, :3]  # the released code divides by zero on a task that never moves
    ratios = history / BEFORE[:3]  # not the first row's loss: the whole validation before the first step
    tasks = history.shape[1]
    alphas: list[np.ndarray] = []
    total: list[float] = []
    expected = np.full((STEPS, tasks), 1 / tasks)
    for step in range(WARMUP, STEPS + 1):
        alphas.append(slopes_at(ratios, step))
        total.append(float(slopes_at(ratios.max(axis=1), step)))
        now, window = alphas[-1], np.array(alphas[-(WINDOW - WARMUP + 1) :])
        relative = softmax(tasks * now / np.abs(now).sum())
        absolute = softmax(-len(window) * now / np.abs(window).sum(axis=0))
        curve = np.array(total)
        factor = len(curve) * softmax(-TAU * len(curve) * curve / np.abs(curve).sum())[-1]
        weights = softmax(tasks * (factor * relative + (1 - factor) * absolute))
        if (weights < 1 / (10 * tasks)).any():
            weights = weights * 0.9 + 1 / (10 * tasks)
        expected[step - 1] = weights
    np.testing.assert_allclose(run(facts, losses, history, variant="released"), expected, rtol=0, atol=1e-9)


def test_a_diverging_task_loses_weight(facts: Callable, losses: Callable) -> None:
    weights = run(facts, losses, HISTORY)
    assert weights[-1, 2] < 0.7 * weights[WARMUP, 2]
    assert weights[-1, 2] == weights[-1].min()


def test_a_slow_task_gains_over_a_fast_one_while_all_converge(facts: Callable, losses: Callable) -> None:
    steady = np.stack([2.0 - 0.06 * TIME, 2.0 - 0.02 * TIME], axis=1)
    weights = run(facts, losses, steady)
    assert (weights[WARMUP + 1 :, 1] > weights[WARMUP + 1 :, 0] + 0.1).all()


def test_slope_of_a_line_is_its_slope() -> None:
    assert least_squares_slope(np.array([1.0, 3.0, 5.0, 7.0])) == pytest.approx(2.0, abs=1e-12)


def test_rows_go_round_the_validation_set_and_no_task_is_missing(facts: Callable) -> None:
    balancer = CobaBalancer(CobaOptions(val_batches=2), facts(3, validation_rows=np.array([5, 2, 1])))
    asked = [[(row.task, row.row) for row in balancer.validation_rows(step)] for step in (1, 2, 3)]
    assert asked[0] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert asked[1] == [(0, 2), (0, 3), (1, 0), (1, 1), (2, 0)]
    assert asked[2] == [(0, 4), (0, 0), (1, 0), (1, 1), (2, 0)]


def test_an_interval_of_ten_measures_every_tenth_step(facts: Callable) -> None:
    balancer = CobaBalancer(CobaOptions(update_interval=10, window=40), facts(2))
    assert [step for step in range(1, 40) if balancer.due(step)] == [1, 11, 21, 31]
    assert [balancer.validation_rows(step)[0].row for step in (1, 11, 21)] == [0, 1, 2]


def test_the_interval_does_not_change_what_a_straight_history_means(facts: Callable, losses: Callable) -> None:
    lines = 2.0 - np.outer(np.arange(1, 101), [0.015, 0.005])
    every = run(facts, losses, lines, window=40)
    tenth = run(facts, losses, lines, window=40, update_interval=10)
    np.testing.assert_allclose(every[-1], tenth[-1], atol=1e-9)
