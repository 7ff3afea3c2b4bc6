"""Facts of a run that follow from its config and its loaders, without a model: for the balancer, and for checks before the start."""

import numpy as np

from mftcoder.balancing.base import RunFacts
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.errors import ConfigError


def run_facts(config: RunConfig, loader: TrainLoader, validation: ValidationLoader) -> RunFacts:
    """What a balancer may know about the run, over all ranks."""
    return RunFacts(
        weights=np.asarray([task.weight for task in config.tasks], np.float64),
        seed=config.train.seed,
        total_steps=loader.total_steps,
        rows_per_step=loader.step_rows,
        fresh_steps=np.asarray(loader.fresh_steps, np.int64),
        validation_rows=np.asarray(validation.rows_of_task, np.int64),
    )


def check_metric(config: RunConfig, validation: ValidationLoader) -> None:
    """ConfigError if train.metric_for_best_model, or early stopping, has no validation data."""
    train, rows = config.train, dict(zip(config.task_names, validation.rows_of_task, strict=True))
    advice = "Raise data.val_size or give the task `validation` files"
    task = train.metric_for_best_model.removeprefix("loss/")
    if task in rows and not rows[task] and train.eval_strategy != "no":
        raise ConfigError(
            f"train.metric_for_best_model: {train.metric_for_best_model}: task '{task}' has no validation rows. {advice}."
        )
    if train.early_stopping_patience is not None and not any(rows.values()):
        raise ConfigError(
            "train.early_stopping_patience: no task has validation rows, so no validation could have a better metric. "
            f"{advice}, or leave it out."
        )
