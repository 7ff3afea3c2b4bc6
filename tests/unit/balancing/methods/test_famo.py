"""FAMO: steps compared with numbers worked by hand."""

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
import pytest

from mftcoder.balancing.methods.famo import FamoBalancer, FamoOptions


def test_famo_follows_algorithm_1(facts: Callable, losses: Callable) -> None:
    beta, gamma = 0.5, 0.01
    balancer = FamoBalancer(FamoOptions(learning_rate=beta, weight_decay=gamma), facts(2))
    weights = [
        balancer.observe(step, losses(means), None).values
        for step, means in enumerate([[2, 1], [1, 0.9], [0.8, 0.9]], 1)
    ]
    np.testing.assert_allclose(weights[0], [1 / 3, 2 / 3], atol=1e-12)  # z = (1/2, 1/2), over losses (2, 1)

    delta = (log(2 / 1), log(1 / 0.9))
    first = 0.5 * 0.5 * (delta[0] - delta[1])  # J delta for K = 2: z1 z2 (d1 - d2), and its negative
    logits = (-beta * first, beta * first)
    z = exp(logits[0]) / (exp(logits[0]) + exp(logits[1]))
    np.testing.assert_allclose(weights[1], np.array([z / 1, (1 - z) / 0.9]) / (z / 1 + (1 - z) / 0.9), atol=1e-12)

    second = z * (1 - z) * (log(1 / 0.8) - 0.0)
    logits = (logits[0] - beta * (second + gamma * logits[0]), logits[1] - beta * (-second + gamma * logits[1]))
    z = exp(logits[0]) / (exp(logits[0]) + exp(logits[1]))
    np.testing.assert_allclose(weights[2], np.array([z / 0.8, (1 - z) / 0.9]) / (z / 0.8 + (1 - z) / 0.9), atol=1e-12)


def test_released_famo_takes_adam_steps_on_the_logits(facts: Callable, losses: Callable) -> None:
    balancer = FamoBalancer(FamoOptions(variant="released"), facts(2))
    balancer.observe(1, losses([2, 1]), None)
    balancer.observe(2, losses([1.9, 1]), None)
    # The gradients so far are (0, g): Adam's mean over the root of its mean square, both corrected for their start.
    g = 0.25 * log(2 / 1.9)
    mean, square = 0.1 * g / (1 - 0.9**2), 0.001 * g * g / (1 - 0.999**2)
    assert balancer.signals["logit"][0] == pytest.approx(-0.025 * mean / (sqrt(square) + 1e-8), abs=1e-12)
