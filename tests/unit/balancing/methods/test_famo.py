"""FAMO: steps compared with numbers worked by hand."""

from collections.abc import Callable
from math import exp, log

import numpy as np
import torch

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


def test_released_famo_takes_the_steps_of_torchs_adam_on_the_logits(facts: Callable, losses: Callable) -> None:
    balancer = FamoBalancer(FamoOptions(variant="released"), facts(3))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=0.01)
    trace = np.array([[2, 1, 3], [1.9, 1, 2.5], [1.7, 1.1, 2.4], [1.6, 0.9, 2.4]])
    balancer.observe(1, losses(trace[0]), None)  # nothing to compare with: no step of Adam
    for step in (1, 2, 3):
        balancer.observe(step + 1, losses(trace[step]), None)
        adam.zero_grad()
        logits.softmax(-1).backward(torch.tensor(np.log(trace[step - 1]) - np.log(trace[step])))
        adam.step()
        np.testing.assert_allclose(balancer.signals["logit"], logits.detach().numpy(), atol=1e-12)
