"""The training loop: it knows when a step, validation, record or checkpoint is due, and leaves the work to the modules beside it.

On a GPU the host runs ahead: results are read only when a record, a validation, a balancer or a checkpoint needs them, and the
record of a step is written while the next step runs.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from mftcoder.balancing.base import TaskBalancer, TaskWeights
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData, TrainLoader, ValidationLoader
from mftcoder.errors import TrainingError
from mftcoder.log import say
from mftcoder.training.backends.base import Backend
from mftcoder.training.checkpoints.checkpoint import Progress
from mftcoder.training.checkpoints.writer import CheckpointWriter
from mftcoder.training.forward.gradient_norms import gradient_norms
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective
from mftcoder.training.metrics import MetricsLog, Pace, balance_record, train_record, validation_record
from mftcoder.training.optimizer import Optimizer, learning_rate
from mftcoder.training.reference import RunPairs
from mftcoder.training.step import LossWindow, StepResult, Validated, describe_nonfinite, train_step, validate


@dataclass(frozen=True)
class Summary:
    """How a run ended; written as summary.json."""

    steps: int
    seconds: float
    stopped_because: str  # "max_steps", "early_stopping" or "interrupted"
    dropped_steps: int  # steps that updated nothing, because they were not finite
    best: dict[str, float | int | None]  # {"step", "value"} of metric_for_best_model
    validation: dict[str, dict[str, float | None]]
    """"first", "best" (at the best metric), "last" and "lowest" -> task -> mean token loss; "lowest_step" -> task -> its step."""


@dataclass
class TrainingRun:
    """One run, ready to continue from `progress.step`."""

    config: RunConfig
    model: LanguageModel
    optimizer: Optimizer
    objective: Objective
    balancer: TaskBalancer
    backend: Backend
    train_loader: TrainLoader
    validation_loader: ValidationLoader
    checkpoints: CheckpointWriter
    metrics: MetricsLog
    progress: Progress
    should_stop: Callable[[], bool]
    pairs: RunPairs  # the preference tasks
    unobserved: LossWindow  # training losses since the balancer's last observation
    steps_behind: int = 0  # 1 where reading a result waits for the device: records are then written one step late
    steps_taken: int = 0  # by this process
    _unread: list[tuple[int, StepResult, TaskWeights]] = field(default_factory=list)
    _clock: float = 0.0

    def run(self) -> Summary:
        """Train to the end, to early stopping, or until `should_stop()`. The last state is always saved.

        A checkpoint that could not be written stops the run like a signal; the next save then raises its error.
        """
        config, progress = self.config.train, self.progress
        weights = TaskWeights(np.asarray(progress.weights))
        if progress.step == 0 and config.eval_strategy != "no":
            self._evaluate()
        self._clock = time.perf_counter()
        stopped = "early_stopping" if self._out_of_patience() else "max_steps"
        for data in () if self._out_of_patience() else self.train_loader.steps(progress.step):
            if not self.steps_taken and self.backend.group.any_rank(self.should_stop()):
                stopped = "interrupted"  # before the first step, so there is nothing to save
                break
            self._step(data, weights)
            if self.balancer.due(progress.step):
                weights = self._balance(data)
            is_best = self._due(config.eval_strategy, config.eval_steps) and self._evaluate()
            if self._out_of_patience():
                stopped = "early_stopping"
            elif (
                self.backend.group.any_rank(self.should_stop() or self.checkpoints.failed)
                and progress.step < self.train_loader.total_steps
            ):
                stopped = "interrupted"
            last = stopped != "max_steps" or progress.step == self.train_loader.total_steps
            if last or is_best or self._due(config.save_strategy, config.save_steps):
                self._save(best=is_best)
            if last:
                break
        self.checkpoints.finish()
        best: dict[str, float | int | None] = {"step": progress.best_step, "value": progress.best_value}
        return Summary(progress.step, progress.seconds, stopped, progress.dropped_steps, best, progress.validation)

    def _out_of_patience(self) -> bool:
        """True if early stopping ends the run here, or ended it before it was resumed."""
        patience = self.config.train.early_stopping_patience
        return patience is not None and self.progress.stalled >= patience

    def _step(self, data: StepData, weights: TaskWeights) -> None:
        progress = self.progress
        rate = learning_rate(progress.step, self.train_loader.total_steps, self.config.train)
        first = self.steps_taken == 0
        result = train_step(
            self.model,
            data,
            weights,
            self.objective,
            self.optimizer,
            rate,
            self.backend,
            first=first,
            pairs=self.pairs.train,
        )
        self.steps_taken += 1
        progress.step += 1
        progress.tokens_seen = (np.asarray(progress.tokens_seen) + data.counts.tokens).tolist()
        self.unobserved.add(result)
        self._unread.append((progress.step, result, weights))
        done = self._unread[: len(self._unread) - self.steps_behind]
        if not self.steps_behind or any(self._logged(step) for step, _, _ in done):
            self._write_records(len(done))

    def _drop(self, step: int, result: StepResult) -> None:
        """Count a step that was not finite, or end the run with the cause. The step updated nothing."""
        data = self.train_loader.step(step - 1)
        problem = describe_nonfinite(
            self.model, result, data, self.config.task_names, self.train_loader.origin, self.backend
        )
        if self.config.train.on_nonfinite == "stop":
            raise TrainingError(
                f"step {step}: {problem}. The model was not updated, and the checkpoints in {self.checkpoints.store.folder} are "
                "unchanged. Look at that sample, lower train.learning_rate, or set train.on_nonfinite: skip."
            )
        self.progress.dropped_steps += 1
        say(f"step {step} dropped ({self.progress.dropped_steps} so far): {problem}")

    def _due(self, strategy: str, every: int) -> bool:
        """True if an action with this strategy is due after the current step; the last step counts unless it is `no`."""
        step, every_epoch = self.progress.step, self.train_loader.steps_per_epoch
        by_steps = strategy in ("steps", "steps_and_epoch") and step % every == 0
        by_epoch = strategy in ("epoch", "steps_and_epoch") and int(step / every_epoch) > int((step - 1) / every_epoch)
        return strategy != "no" and (by_steps or by_epoch or step == self.train_loader.total_steps)

    def _balance(self, data: StepData) -> TaskWeights:
        """Measure what the balancer needs after this step, and return its weights for the next steps."""
        self._write_records()
        started, step, balancer = time.perf_counter(), self.progress.step, self.balancer
        rows = balancer.validation_rows(step)
        held_out = self.validation_loader.subset([row.task for row in rows], [row.row for row in rows])
        losses = self._validate(held_out.micro_batches, held_out.counts).losses if rows else None
        norms, layer = None, balancer.gradient_layer(step)
        if layer is not None:
            measured, pairs = (held_out, self.pairs.validation) if rows else (data, self.pairs.train)
            batches, counts = measured.micro_batches, measured.counts
            of_pairs = pairs.losses(self.model, batches, counts, self.backend) if pairs else None
            norms = gradient_norms(self.model, measured, self.backend, layer=layer, pairs=of_pairs)
        weights = balancer.observe(step, self.unobserved.peek(), losses, norms)
        self.unobserved.clear()
        self.progress.weights = weights.values.tolist()
        if self._logged(step):
            seconds = time.perf_counter() - started
            self.metrics.log(
                balance_record(step, weights, balancer.signals, self.config.task_names, len(rows), seconds)
            )
        return weights

    def _evaluate(self) -> bool:
        """Validate, log the losses, keep them in `progress`. Returns True if the metric is the best so far."""
        self._write_records()
        started, progress, config = time.perf_counter(), self.progress, self.config
        found = self._validate(self.validation_loader, self.validation_loader.counts)
        losses = found.losses
        record = validation_record(progress.step, found, config.task_names, time.perf_counter() - started)
        self.metrics.log(record)
        self.balancer.evaluated(progress.step, losses)
        self._clock = time.perf_counter()
        progress.validation["last"] = record["losses"]
        progress.validation.setdefault("first", record["losses"])
        remember_lowest(progress.validation, record["losses"], progress.step)
        metric = config.train.metric_for_best_model
        value = record["loss"] if metric == "loss" else record["losses"][metric.removeprefix("loss/")]
        if value is None or (progress.best_value is not None and value >= progress.best_value):
            progress.stalled += 1
            return False
        progress.best_value, progress.best_step, progress.stalled = value, progress.step, 0
        progress.validation["best"] = record["losses"]
        return progress.step > 0

    def _validate(self, batches: Iterable[PackedBatch], counts: StepCounts) -> Validated:
        return validate(self.model, batches, counts, self.backend, self.pairs.validation)

    def _save(self, *, best: bool) -> None:
        self._write_records()
        self.progress.balancer = self.balancer.state_dict()
        self.progress.unobserved = self.unobserved.state_dict()
        self.checkpoints.save(self.progress, self.optimizer, best=best)
        self._clock = time.perf_counter()

    def _write_records(self, count: int | None = None) -> None:
        """Read the results of the oldest `count` unread steps (default: all) and log those that are due."""
        read = self._unread[:count]
        if not read:
            return
        finite = [result.finite for _, result, _ in read]  # waits for the newest of them
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        self.progress.seconds += seconds
        pace = Pace(len(read), seconds, sum(result.real_tokens for _, result, _ in read))
        for (step, result, weights), is_finite in zip(read, finite, strict=True):
            if not is_finite:
                self._drop(step, result)
            if self._logged(step):
                epoch = step / self.train_loader.steps_per_epoch
                self.metrics.log(train_record(step, epoch, result, weights, self.config.task_names, pace))
        del self._unread[:count]

    def _logged(self, step: int) -> bool:
        return step % self.config.train.logging_steps == 0 or step == self.train_loader.total_steps


def remember_lowest(validation: dict[str, dict[str, float | None]], losses: dict[str, float | None], step: int) -> None:
    """Keep each task's lowest loss under "lowest" and its step under "lowest_step", in place."""
    lowest, steps = validation.setdefault("lowest", {}), validation.setdefault("lowest_step", {})
    for task, loss in losses.items():
        before = lowest.get(task)
        if loss is not None and (before is None or loss < before):
            lowest[task], steps[task] = loss, step
