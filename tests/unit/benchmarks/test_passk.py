"""pass@k against its definition: draw k of n samples, how often is one of them right."""

from itertools import combinations

import pytest

from mftcoder.benchmarks.passk import estimate, pass_at_k, wilson
from mftcoder.errors import BenchmarkError


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_fraction_of_draws_with_a_pass(samples):
    for passed in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(combinations([True] * passed + [False] * (samples - passed), k))
            assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_samples():
    with pytest.raises(BenchmarkError, match="pass@2: k must lie between 1 and"):
        pass_at_k(1, 1, 2)


def test_the_score_is_the_mean_over_problems():
    score = estimate([2, 4], [1, 4], 1)
    assert (score.value, score.problems, score.samples_per_problem) == (0.75, 2, 3)


def test_the_interval_solves_wilsons_equation():
    # Its ends are the shares p from which the mean lies z standard errors away.
    for mean in (0.0, 0.1, 0.5, 1.0):
        for end in wilson(mean, 50):
            assert abs(mean - end) == pytest.approx(1.959963984540054 * (end * (1 - end) / 50) ** 0.5, abs=1e-9)


def test_none_of_n_begins_at_0_and_all_of_n_ends_at_1():
    for count in range(1, 2000):
        assert (wilson(0.0, count)[0], wilson(1.0, count)[1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "passed", "k"), [(3, 1, 5), (3, 4, 1), (3, 1, 0), (3.5, 1, 1), ("3", 1, 1), (9, 2, 2.5)]
)
def test_numbers_that_do_not_fit_are_errors_that_say_which(samples, passed, k):
    with pytest.raises(BenchmarkError, match=r"samples|passed|k: must"):
        pass_at_k(samples, passed, k)


@pytest.mark.parametrize(("samples", "passed"), [([], []), ([1, 2], [1]), (10, 3)])
def test_a_score_needs_two_lists_of_the_same_length(samples, passed):
    with pytest.raises(BenchmarkError, match="two lists of the same length"):
        estimate(samples, passed, 1)
