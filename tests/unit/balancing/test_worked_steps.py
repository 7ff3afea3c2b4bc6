"""FAMO, DWA, LBTW, GradNorm, uncertainty and random weighting: two steps of each, compared with numbers worked by hand."""

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
import pytest

from mftcoder.balancing.methods.dwa import DwaBalancer, DwaOptions
from mftcoder.balancing.methods.famo import FamoBalancer, FamoOptions
from mftcoder.balancing.methods.gradnorm import GradNormBalancer, GradNormOptions
from mftcoder.balancing.methods.lbtw import LbtwBalancer, LbtwOptions
from mftcoder.balancing.methods.random_weighting import RandomBalancer, RandomOptions
from mftcoder.balancing.methods.uncertainty import UncertaintyBalancer, UncertaintyOptions

NAN = float("nan")


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


def test_dwa_weighs_by_the_ratio_of_the_last_two_periods(facts: Callable, losses: Callable) -> None:
    balancer = DwaBalancer(DwaOptions(update_interval=5, temperature=2.0), facts(2))
    first = balancer.observe(5, losses([2.0, 1.0]), None).values
    second = balancer.observe(10, losses([1.0, 0.9]), None).values
    third = balancer.observe(15, losses([0.9, 0.9]), None).values
    np.testing.assert_allclose(first, [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(second, np.array([exp(0.25), exp(0.45)]) / (exp(0.25) + exp(0.45)), atol=1e-12)
    np.testing.assert_allclose(third, np.array([exp(0.45), exp(0.5)]) / (exp(0.45) + exp(0.5)), atol=1e-12)


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


def test_random_weights_depend_on_seed_and_step_only(facts: Callable, losses: Callable) -> None:
    config = RandomOptions()
    here = [RandomBalancer(config, facts(3)).observe(step, losses([1, 2, 3]), None).values for step in (5, 6)]
    again = RandomBalancer(config, facts(3)).observe(5, losses([9, 9, 9]), None).values
    other = RandomBalancer(config, facts(3, seed=4)).observe(5, losses([1, 2, 3]), None).values
    np.testing.assert_array_equal(here[0], again)
    assert not np.allclose(here[0], here[1])
    assert not np.allclose(here[0], other)
