from collections import Counter

import numpy as np
import torch

from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.sampler import next_tokens, random_stream

PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.35])


def drawn(sampling: Sampling, count: int = 4000) -> Counter[int]:
    rows = PROBABILITIES.log().expand(count, -1)
    streams = [np.random.default_rng(seed) for seed in range(count)]
    return Counter(next_tokens(rows, sampling, streams))


def test_greedy_takes_the_most_probable_token() -> None:
    assert drawn(Sampling(), 3) == {1: 3}


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


def test_streams_depend_on_seed_problem_and_sample() -> None:
    variants = [("a", 0, 1), ("a", 0, 2), ("a", 1, 1), ("b", 0, 1)]
    first = [random_stream(Prompt("t", name, sample, ""), seed).random() for name, sample, seed in variants]
    again = [random_stream(Prompt("t", name, sample, "other text"), seed).random() for name, sample, seed in variants]
    assert first == again
    assert len(set(first)) == 4
