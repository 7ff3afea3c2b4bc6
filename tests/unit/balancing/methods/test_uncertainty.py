"""Uncertainty weighting: steps compared with numbers worked by hand."""

from collections.abc import Callable
from math import exp

import numpy as np

from mftcoder.balancing.methods.uncertainty import UncertaintyBalancer, UncertaintyOptions

NAN = float("nan")


def test_uncertainty_descends_on_the_log_variances(facts: Callable, losses: Callable) -> None:
    balancer = UncertaintyBalancer(UncertaintyOptions(learning_rate=0.1), facts(2))
    balancer.observe(1, losses([2.0, 0.5]), None)
    weights = balancer.observe(2, losses([1.0, NAN]), None).values
    s = np.array([-0.1 * (0.5 - 2.0), 0.0])
    s[0] -= 0.1 * (0.5 - exp(-s[0]) * 1.0)
    np.testing.assert_allclose(weights, np.exp(-s) / np.exp(-s).sum(), atol=1e-12)


def test_uncertainty_settles_at_the_inverse_of_twice_the_loss(facts: Callable, losses: Callable) -> None:
    balancer = UncertaintyBalancer(UncertaintyOptions(learning_rate=0.2), facts(2))
    for step in range(1, 300):
        weights = balancer.observe(step, losses([2.0, 0.5]), None).values
    np.testing.assert_allclose(weights, [0.2, 0.8], atol=1e-6)
