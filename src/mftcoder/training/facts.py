"""Facts of a run that follow from its config and its loaders, without a model: for the balancer, and for checks before the start."""

import numpy as np
from numpy.typing import NDArray

from mftcoder.balancing.base import RunFacts
from mftcoder.config.kinds import KtoKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import Store
from mftcoder.errors import ConfigError, DataError
from mftcoder.training.optimizer import decay_steps, warmup_steps


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


def check_schedule(config: RunConfig, total_steps: int) -> None:
    """ConfigError if warm-up and decay of a WSD schedule overlap: the learning rate would fall in one jump where they meet."""
    train = config.train
    if train.lr_scheduler_type != "warmup_stable_decay":
        return
    warmup, decay = warmup_steps(total_steps, train), decay_steps(total_steps, train)
    if warmup + decay > total_steps:
        raise ConfigError(
            f"train.warmup_steps: {warmup} steps of warm-up and {decay} of decay (train.decay_steps) do not fit into the run's "
            f"{total_steps} steps. Lower them, or write fractions of the run such as 0.05 and 0.2."
        )


def label_warnings(config: RunConfig, store: Store) -> list[str]:
    """A line for each KTO task whose labels say less than the loss needs. DataError for one that would train nothing."""
    found = []
    for number, task in enumerate(config.tasks):
        if not isinstance(task.kind, KtoKind):
            continue
        desirable = store.train(number).desirable
        _check_weights(task.name, task.kind, desirable)
        if len(desirable) == 1:
            found.append(
                f"tasks.{task.name}: has one labelled answer, so KTO's z is that answer's own gain. Give it more, or take kind: sft"
            )
        elif desirable.all() or not desirable.any():
            present, absent = ("desirable", "undesirable") if desirable.all() else ("undesirable", "desirable")
            found.append(
                f"tasks.{task.name}: all {len(desirable)} answers are {present}. KTO compares them with {absent} ones: give it both"
            )
    return found


def _check_weights(task: str, kind: KtoKind, desirable: NDArray[np.bool_]) -> None:
    """DataError if every label of the task has the weight 0."""
    weight = np.where(desirable, kind.desirable_weight, kind.undesirable_weight)
    if len(desirable) and not weight.any():
        name = "desirable" if desirable.all() else "undesirable"
        raise DataError(
            f"tasks.{task}: all {len(desirable)} answers are {name}, and kind.{name}_weight is 0: nothing would be trained. Raise it"
        )
