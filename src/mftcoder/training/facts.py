"""What a balancer may know about a run, from its config and its loaders. Needs no model."""

import numpy as np

from mftcoder.balancing.base import RunFacts
from mftcoder.config.schema import RunConfig
from mftcoder.data.loader import TrainLoader, ValidationLoader


def run_facts(config: RunConfig, loader: TrainLoader, validation: ValidationLoader) -> RunFacts:
    """The facts of the run that `config` describes, over all ranks."""
    return RunFacts(
        weights=np.asarray([task.weight for task in config.tasks], np.float64),
        seed=config.train.seed,
        total_steps=loader.total_steps,
        rows_per_step=loader.step_rows,
        fresh_steps=np.asarray(loader.fresh_steps, np.int64),
        validation_rows=np.asarray(validation.rows_of_task, np.int64),
    )
