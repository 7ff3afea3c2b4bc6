"""Random weighting: steps compared with numbers worked by hand."""

from collections.abc import Callable

import numpy as np

from mftcoder.balancing.methods.random_weighting import RandomBalancer, RandomOptions


def test_random_weights_depend_on_seed_and_step_only(facts: Callable, losses: Callable) -> None:
    config = RandomOptions()
    here = [RandomBalancer(config, facts(3)).observe(step, losses([1, 2, 3]), None).values for step in (5, 6)]
    again = RandomBalancer(config, facts(3)).observe(5, losses([9, 9, 9]), None).values
    other = RandomBalancer(config, facts(3, seed=4)).observe(5, losses([1, 2, 3]), None).values
    np.testing.assert_array_equal(here[0], again)
    assert not np.allclose(here[0], here[1])
    assert not np.allclose(here[0], other)
