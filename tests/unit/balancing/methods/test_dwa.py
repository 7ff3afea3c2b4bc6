"""DWA: steps compared with numbers worked by hand."""

from collections.abc import Callable
from math import exp

import numpy as np

from mftcoder.balancing.methods.dwa import DwaBalancer, DwaOptions


def test_dwa_weighs_by_the_ratio_of_the_last_two_periods(facts: Callable, losses: Callable) -> None:
    balancer = DwaBalancer(DwaOptions(update_interval=5, temperature=2.0), facts(2))
    first = balancer.observe(5, losses([2.0, 1.0]), None).values
    second = balancer.observe(10, losses([1.0, 0.9]), None).values
    third = balancer.observe(15, losses([0.9, 0.9]), None).values
    np.testing.assert_allclose(first, [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(second, np.array([exp(0.25), exp(0.45)]) / (exp(0.25) + exp(0.45)), atol=1e-12)
    np.testing.assert_allclose(third, np.array([exp(0.45), exp(0.5)]) / (exp(0.45) + exp(0.5)), atol=1e-12)
