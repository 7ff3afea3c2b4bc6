"""pass@k: the probability that at least one of k samples passes, with a confidence interval.

The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374): 1 - C(n-c, k) / C(n, k), averaged over problems.
"""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from numbers import Integral

from mftcoder.errors import BenchmarkError

_Z = 1.959963984540054  # two-sided 95%

INTERVAL = "95% Wilson score interval over the problems"
"""Of the mean over problems. With one sample per problem and k = 1 it is the usual interval of a proportion. With more samples, each
problem's value lies between 0 and 1 and its variance is at most that of a yes or no, so the interval is rather too wide."""


@dataclass(frozen=True)
class PassAtK:
    """A score between 0 and 1, with its interval."""

    k: int
    value: float
    low: float
    high: float
    problems: int
    samples_per_problem: float  # the mean


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """pass@k of one problem: 10 samples, 3 passed, k = 1 -> 0.3. BenchmarkError if there are fewer than k samples."""
    for name, value in (("samples", samples), ("passed", passed), ("k", k)):
        if not isinstance(value, Integral):
            raise BenchmarkError(f"{name}: must be a whole number, not {value!r}")
    if not 1 <= k <= samples:
        raise BenchmarkError(f"pass@{k}: k must lie between 1 and the number of samples, which is {samples}")
    if not 0 <= passed <= samples:
        raise BenchmarkError(f"passed: must lie between 0 and the number of samples, which is {samples}, not {passed}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def wilson(mean: float, count: int) -> tuple[float, float]:
    """The Wilson score interval of a mean of `count` values between 0 and 1. It begins at exactly 0 for a mean of 0, and ends at 1 for 1."""
    return _lower_bound(mean, count), 1.0 - _lower_bound(1.0 - mean, count)


def _lower_bound(mean: float, count: int) -> float:
    half = _Z**2 / (2 * count)
    spread = math.sqrt(2 * half * mean * (1 - mean) + half**2)  # for a mean of 0 half itself, to the last bit
    return max(0.0, (mean + half - spread) / (1 + 2 * half))


def estimate(samples: Sequence[int], passed: Sequence[int], k: int) -> PassAtK:
    """pass@k over problems. `samples[i]` and `passed[i]` belong to problem i; every problem needs at least k samples."""
    if not isinstance(samples, Sized) or not isinstance(passed, Sized) or not 0 < len(samples) == len(passed):
        raise BenchmarkError("samples, passed: give two lists of the same length, with one number for each problem")
    values = [pass_at_k(n, c, k) for n, c in zip(samples, passed, strict=True)]
    mean = math.fsum(values) / len(values)
    low, high = wilson(mean, len(values))
    return PassAtK(k, mean, low, high, len(values), sum(samples) / len(samples))
