from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.sampler import NOT_FINITE, next_tokens, random_stream

PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.35])


def drawn(sampling: Sampling, count: int = 4000) -> Counter[int]:
    rows = PROBABILITIES.log().expand(count, -1)
    streams = [np.random.default_rng(seed) for seed in range(count)]
    return Counter(next_tokens(rows, sampling, streams))


def test_greedy_takes_the_most_probable_token() -> None:
    assert drawn(Sampling(), 3) == {1: 3}


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-20])
def test_the_lowest_temperatures_take_the_most_probable_token(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature), 3) == {1: 3}


def test_temperature_one_samples_by_probability() -> None:
    counts = drawn(Sampling(temperature=1.0))
    assert all(abs(counts[token] / 4000 - share) < 0.03 for token, share in enumerate(PROBABILITIES.tolist()))


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    counts = drawn(Sampling(temperature=1.0, top_p=0.6))
    assert set(counts) == {1, 3}
    assert abs(counts[1] / 4000 - 0.5 / 0.85) < 0.03


def test_a_tiny_top_p_is_greedy() -> None:
    assert set(drawn(Sampling(temperature=1.0, top_p=1e-6), 100)) == {1}


def test_top_p_over_a_flat_distribution_uses_more_than_the_most_probable_tokens() -> None:
    flat = torch.zeros(200, 5000)
    streams = [np.random.default_rng(seed) for seed in range(200)]
    assert len(set(next_tokens(flat, Sampling(temperature=1.0, top_p=0.5), streams))) > 150


def survivors(sampling: Sampling, probabilities: torch.Tensor = PROBABILITIES) -> dict[int, float]:
    """Each token that can be drawn with its probability, to 1 / 2,000: one row for each number of an even grid."""
    grid = [Fixed((step + 0.5) / 2000) for step in range(2000)]
    counts = Counter(next_tokens(probabilities.log().expand(2000, -1), sampling, grid))  # type: ignore[arg-type]
    return {token: count / 2000 for token, count in sorted(counts.items())}


class Fixed:
    """A random stream that gives one number."""

    def __init__(self, number: float):
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(
    "bounds, kept",
    [
        ({"top_k": 3}, {0: 0.1, 1: 0.5, 3: 0.35}),
        ({"top_k": 9}, {0: 0.1, 1: 0.5, 2: 0.05, 3: 0.35}),
        ({"min_p": 0.15}, {0: 0.1, 1: 0.5, 3: 0.35}),
        ({"min_p": 0.25}, {1: 0.5, 3: 0.35}),
        ({"top_k": 2, "top_p": 0.58}, {1: 1}),  # 0.5 / 0.85 = 0.588 reaches it
        ({"top_k": 2, "top_p": 0.59}, {1: 0.5, 3: 0.35}),
        ({"min_p": 0.25, "top_p": 0.58}, {1: 1}),  # a share of what min_p leaves
        ({"min_p": 0.25, "top_p": 0.58, "temperature_last": True}, {1: 0.5, 3: 0.35}),  # a share of all
    ],
)
def test_bounds_leave_the_probabilities_of_what_they_keep(bounds: dict[str, Any], kept: dict[int, float]) -> None:
    expected = {token: share / sum(kept.values()) for token, share in kept.items()}
    assert survivors(Sampling(temperature=1.0, **bounds)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("last, kept", [(False, {1: 0.5}), (True, {1: 0.5, 3: 0.35})])
def test_bounds_look_at_the_probabilities_before_the_temperature_if_it_comes_last(
    last: bool, kept: dict[int, float]
) -> None:
    cold = Sampling(temperature=0.5, min_p=0.6, temperature_last=last)  # 0.35 / 0.5 = 0.7, its square 0.49
    expected = {token: share**2 / sum(other**2 for other in kept.values()) for token, share in kept.items()}
    assert survivors(cold) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "bounds", [{"top_k": 300}, {"min_p": 0.5}, {"top_k": 300, "top_p": 0.9}, {"min_p": 0.5, "top_p": 0.9}]
)
@pytest.mark.parametrize("last", [False, True])
def test_bounds_hold_beyond_the_most_probable_tokens(bounds: dict[str, Any], last: bool) -> None:
    falling = torch.linspace(2, 1, 700).softmax(-1)  # the probability halves after 485 tokens
    found = survivors(Sampling(temperature=1.0, temperature_last=last, **bounds), falling)
    left = falling[: bounds.get("top_k", 485)]
    whole = 1.0 if last and "min_p" in bounds else left.sum()
    reach = int((left.cumsum(0) - left < bounds.get("top_p", 1) * whole).sum())
    assert max(found) == reach - 1 and min(found) == 0


def test_streams_depend_on_seed_problem_and_sample() -> None:
    variants = [("a", 0, 1), ("a", 0, 2), ("a", 1, 1), ("b", 0, 1)]
    first = [random_stream(Prompt("t", name, sample, ""), seed).random() for name, sample, seed in variants]
    again = [random_stream(Prompt("t", name, sample, "other text"), seed).random() for name, sample, seed in variants]
    assert first == again
    assert len(set(first)) == 4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.5, top_p=0.9),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=2.0, top_k=2, temperature_last=True),
    ],
)
def test_a_row_that_is_not_finite_gets_no_token_and_the_others_get_theirs(sampling: Sampling) -> None:
    whole = PROBABILITIES.log()
    whole[0] = float("-inf")  # a token that a model never gives
    broken = whole.expand(4, -1).clone()
    broken[0, 2], broken[1, 0], broken[2] = float("nan"), float("inf"), float("-inf")
    streams: Any = [Fixed(0.5)] * 4
    expected = next_tokens(whole[None], sampling, streams[:1])
    assert next_tokens(broken, sampling, streams) == [NOT_FINITE] * 3 + expected


def test_a_temperature_that_no_logit_can_be_divided_by_is_greedy() -> None:
    assert drawn(Sampling(temperature=1e-40), 3) == {1: 3}
