"""GradNorm: steps compared with numbers worked by hand."""

from collections.abc import Callable

import numpy as np

from mftcoder.balancing.methods.gradnorm import GradNormBalancer, GradNormOptions

NAN = float("nan")


def test_gradnorm_moves_weights_towards_the_target_norms(facts: Callable, losses: Callable) -> None:
    balancer = GradNormBalancer(GradNormOptions(alpha=1.5, learning_rate=0.1), facts(2))
    balancer.observe(10, losses([2.0, 1.0]), None, np.array([1.0, 1.0]))  # norms on target: sign 0, nothing moves
    weights = balancer.observe(20, losses([1.0, 0.8]), None, np.array([3.0, 1.0])).values
    # Ratios (0.5, 0.8), mean 0.65; targets 2 * (0.5/0.65)^1.5 < 3 and 2 * (0.8/0.65)^1.5 > 1: signs +, -.
    moved = np.array([1 - 0.1 * 3.0, 1 + 0.1 * 1.0])
    np.testing.assert_allclose(weights, moved / moved.sum(), atol=1e-12)


def test_gradnorm_leaves_an_absent_task_alone(facts: Callable, losses: Callable) -> None:
    balancer = GradNormBalancer(GradNormOptions(), facts(3))
    weights = balancer.observe(10, losses([1.0, NAN, 2.0]), None, np.array([2.0, NAN, 1.0])).values
    assert weights[0] < weights[1] < weights[2]
