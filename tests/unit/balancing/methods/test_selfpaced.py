"""Self-paced weights compared with numbers worked by hand and with the formula written out here."""

from collections.abc import Callable
from math import exp

import numpy as np
import pytest

from mftcoder.balancing.methods.selfpaced import SelfPacedBalancer, SelfPacedOptions


def run(facts: Callable, losses: Callable, history: np.ndarray, **options: object) -> np.ndarray:
    """The weights after each update; `history` [steps, K] are the validation losses."""
    config = SelfPacedOptions(**options)  # type: ignore[arg-type]
    balancer = SelfPacedBalancer(config, facts(history.shape[1], total_steps=len(history)))
    steps = [step for step in range(1, len(history) + 1) if balancer.due(step)]
    return np.stack([balancer.observe(step, losses([1.0] * 2), losses(history[step - 1])).values for step in steps])


def test_three_losses_worked_by_hand(facts: Callable, losses: Callable) -> None:
    """Slopes -1 and -1/4: z = 2 (-1, -1/4) / (5/4) = (-8/5, -2/5); softmax(z) = (p, 1 - p) with p = 1 / (1 + e^(6/5))."""
    weights = run(facts, losses, np.array([[3.0, 2.0], [2.0, 1.75], [1.0, 1.5]]), window=3)
    np.testing.assert_array_equal(weights[:2], [[0.5, 0.5], [0.5, 0.5]])  # the window is not full
    p = 1 / (1 + exp(6 / 5))
    first = 1 / (1 + exp(-50 * (p * 8 / 5 - (1 - p) * 2 / 5)))
    assert first == pytest.approx(0.958811, abs=1e-6)
    np.testing.assert_allclose(weights[2], [first, 1 - first], atol=1e-12)


def test_weights_equal_the_published_formula_in_a_rolling_window(facts: Callable, losses: Callable) -> None:
    rng, steps, window = np.random.default_rng(5), 160, 100
    history = 1 + np.exp(-np.outer(np.arange(steps), [0.05, 0.01, 0.002])) + 0.05 * rng.standard_normal((steps, 3))
    weights = run(facts, losses, history, window=window)
    np.testing.assert_allclose(weights[: window - 1], 1 / 3)
    for step in range(window, steps + 1):
        slopes = np.polyfit(np.arange(window), history[step - window : step], 1)[0]
        z = 3 * slopes / (abs(slopes[0]) + abs(slopes[1]) + abs(slopes[2]))
        inner = np.exp(z) / np.exp(z).sum()
        outer = np.exp(50 * inner * -z)
        np.testing.assert_allclose(weights[step - 1], outer / outer.sum(), atol=1e-9)
    assert weights[window - 1 :].max() > 0.9


def test_weights_are_equal_while_no_loss_moves(facts: Callable, losses: Callable) -> None:
    still = np.tile([2.3, 0.1], (40, 1))
    np.testing.assert_array_equal(run(facts, losses, still, window=10), np.full((40, 2), 0.5))


def test_the_window_is_a_hundred_updates_or_a_fifth_of_a_short_run(facts: Callable, losses: Callable) -> None:
    for steps, warmup in ((1000, 100), (60, 12)):
        falling = 3 - np.outer(np.arange(steps), [0.002, 0.001])
        moved = np.flatnonzero(np.abs(run(facts, losses, falling)[:, 0] - 0.5) > 0.01)
        assert moved[0] + 1 == warmup


def test_a_loss_that_is_not_finite_is_left_out_of_the_line(facts: Callable, losses: Callable) -> None:
    line = 3 - np.outer(np.arange(12), [0.02, 0.01])
    broken = line.copy()
    broken[7, 0] = np.nan
    np.testing.assert_allclose(run(facts, losses, broken, window=6), run(facts, losses, line, window=6), atol=1e-12)


def test_rows_go_round_the_validation_set(facts: Callable) -> None:
    balancer = SelfPacedBalancer(SelfPacedOptions(update_interval=2), facts(2, validation_rows=np.array([3, 1])))
    asked = [[(row.task, row.row) for row in balancer.validation_rows(step)] for step in (2, 4, 6, 8)]
    assert asked == [[(0, 0), (1, 0)], [(0, 1), (1, 0)], [(0, 2), (1, 0)], [(0, 0), (1, 0)]]
