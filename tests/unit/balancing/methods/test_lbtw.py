"""LBTW: steps compared with numbers worked by hand."""

from collections.abc import Callable

import numpy as np

from mftcoder.balancing.methods.lbtw import LbtwBalancer, LbtwOptions

NAN = float("nan")


def test_lbtw_weighs_by_a_power_of_the_loss_ratio(facts: Callable, losses: Callable) -> None:
    balancer = LbtwBalancer(LbtwOptions(), facts(2))
    first = balancer.observe(1, losses([2.0, 1.0]), None).values
    second = balancer.observe(2, losses([0.5, 0.81]), None).values
    third = balancer.observe(3, losses([NAN, 0.64]), None).values
    np.testing.assert_allclose(first, [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(second, np.array([0.5, 0.9]) / 1.4, atol=1e-12)
    np.testing.assert_allclose(third, np.array([0.5, 0.8]) / 1.3, atol=1e-12)  # the absent task keeps its ratio


def test_lbtw_takes_its_reference_anew_after_the_window(facts: Callable, losses: Callable) -> None:
    balancer = LbtwBalancer(LbtwOptions(window=2), facts(2))
    weights = [
        balancer.observe(step, losses(means), None).values for step, means in enumerate([[4, 1], [1, 1], [1, 1]], 1)
    ]
    np.testing.assert_allclose(weights[1], np.array([0.5, 1.0]) / 1.5, atol=1e-12)
    np.testing.assert_allclose(weights[2], [0.5, 0.5], atol=1e-12)
