"""Fixtures of the balancer tests: facts of a made-up run, and losses from plain means."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mftcoder.balancing.base import RunFacts, TaskLosses


@pytest.fixture
def facts() -> Callable[..., RunFacts]:
    """`facts(4)`: a run of four equally weighted tasks; any field can be given."""

    def make(num_tasks: int, **fields: object) -> RunFacts:
        values: dict[str, object] = {
            "weights": np.ones(num_tasks),
            "seed": 3,
            "total_steps": 100,
            "rows_per_step": 8,
            "fresh_steps": np.full(num_tasks, 40),
            "validation_rows": np.full(num_tasks, 6),
            **fields,
        }
        return RunFacts(**values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def losses() -> Callable[[Sequence[float]], TaskLosses]:
    """`losses([1.5, nan])`: 8 tokens in 2 samples of each task, none of a task whose mean is nan."""

    def make(means: Sequence[float]) -> TaskLosses:
        present = np.isfinite(np.asarray(means, np.float64))
        return TaskLosses(np.where(present, means, 0.0) * 8, np.where(present, 8, 0), np.where(present, 2, 0))

    return make
