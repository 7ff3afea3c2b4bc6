"""The loader: rows in mixture order -> steps of PackedBatch tensors. The only part of `data` that needs torch.

A step is a pure function of its number, so any number of worker processes gives the same steps. The counts of the whole step follow
from the plan, without communication.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.mixture import Mixture, StepPlan
from mftcoder.data.batches.packing import assemble, plan_rows
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import Store
from mftcoder.processes import main_module_hidden

_ROUND_TO = 8  # dynamic row lengths are rounded up to a multiple of this, which kernels run faster


@dataclass(frozen=True)
class PackedBatch:
    """B rows of L positions, int64. Position 0 starts a segment; padding is a segment with targets -100 and task -1."""

    input_ids: Tensor  # [B, L]
    targets: Tensor  # [B, L]
    position_ids: Tensor  # [B, L]
    task_ids: Tensor  # [B, L]
    samples: Tensor
    """[S, 2] (task, index in the task's samples) of each segment in order of appearance, without padding; a pair has two segments."""

    @property
    def real_segments(self) -> Tensor:
        """For each segment in order of appearance: True for a sample, False for padding."""
        starts = (self.position_ids == 0).flatten()
        return (self.task_ids.flatten() >= 0)[starts]

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for asynchronous copies."""
        return type(self)(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


@dataclass(frozen=True)
class StepCounts:
    """Counts of a whole step, over all ranks and micro-batches."""

    tokens: NDArray[np.int64]  # [K] trained tokens
    samples: NDArray[np.int64]  # [K] samples with at least one trained token
    positions: int  # tokens of all samples, trained or not; padding is not counted
    by_sample: NDArray[np.bool_] | None = (
        None  # [K] tasks whose loss is a mean over samples (pairs, sampled answers); None: no task
    )

    @property
    def units(self) -> NDArray[np.int64]:
        """What a task's loss is the mean of [K]: its trained tokens; of a preference task or one of sampled answers its samples."""
        return self.tokens if self.by_sample is None else np.where(self.by_sample, self.samples, self.tokens)


@dataclass(frozen=True)
class StepData:
    """One rank's micro-batches of an optimizer step, and the counts of the whole step."""

    micro_batches: tuple[PackedBatch, ...]
    counts: StepCounts

    def pin_memory(self) -> Self:
        """The same step in page-locked memory."""
        return type(self)(tuple(batch.pin_memory() for batch in self.micro_batches), self.counts)


class _Rows:
    """The rows of every task: the samples of each, its length, and batches of rows."""

    def __init__(self, samples: Sequence[TaskSamples], config: RunConfig):
        self.samples = tuple(samples)
        self.data = config.data
        self.plans = tuple(plan_rows(one.lengths, self.data.packing, self.data.max_length) for one in self.samples)
        self.lengths = tuple(
            plan.sums(one.lengths).astype(np.int32) for plan, one in zip(self.plans, self.samples, strict=True)
        )

    @property
    def groups_by_length(self) -> bool:
        """Whether a batch's rows are padded to its longest row only, so that rows of similar length should share a batch."""
        return self.data.packing == "none" and self.data.padding == "dynamic"

    def batch(self, tasks: Sequence[int], rows: Sequence[int]) -> PackedBatch:
        """The batch of these rows; without rows one row of padding, so that every rank runs a batch."""
        members = [
            [(task, int(index)) for index in self.plans[task].row(row)] for task, row in zip(tasks, rows, strict=True)
        ]
        length = self._row_length([int(self.lengths[task][row]) for task, row in zip(tasks, rows, strict=True)])
        packed = [
            assemble([self.samples[task].sample(index) for task, index in row], length) for row in members or [[]]
        ]
        segments = [one for row in members for one in row for _ in range(2 if self.samples[one[0]].has_pairs else 1)]
        columns = ("input_ids", "targets", "position_ids", "task_ids")
        stacked = {name: torch.from_numpy(np.stack([getattr(row, name) for row in packed])).long() for name in columns}
        return PackedBatch(**stacked, samples=torch.tensor(segments, dtype=torch.int64).reshape(-1, 2))

    def _row_length(self, lengths: Sequence[int]) -> int:
        if not self.groups_by_length:
            return self.data.max_length
        longest = max(lengths, default=1)
        return min(-(-longest // _ROUND_TO) * _ROUND_TO, self.data.max_length)

    def counts(self, tasks: Sequence[int], rows: Sequence[int]) -> StepCounts:
        """Trained tokens, samples and positions of these rows."""
        tokens = np.zeros(len(self.samples), np.int64)
        samples = np.zeros(len(self.samples), np.int64)
        positions = 0
        for task, row in zip(tasks, rows, strict=True):
            trained = self.samples[task].trained_tokens[self.plans[task].row(row)]
            tokens[task] += trained.sum()
            samples[task] += np.count_nonzero(trained)
            positions += int(self.lengths[task][row])
        by_sample = np.array([one.is_unit for one in self.samples])
        return StepCounts(tokens, samples, positions, by_sample if by_sample.any() else None)


class _Steps(Dataset[StepData]):
    """Step number -> one rank's StepData."""

    def __init__(self, rows: _Rows, plan: StepPlan, rank: int):
        self.rows, self.plan, self.rank = rows, plan, rank

    def __getitem__(self, step: int) -> StepData:
        tasks, rows = (values.tolist() for values in self.plan.step(step))
        slices = self.plan.micro_batches(len(tasks), self.rank)
        batches = tuple(self.rows.batch(tasks[part], rows[part]) for part in slices)
        return StepData(batches, self.rows.counts(tasks, rows))


class TrainLoader:
    """The steps of a run for one rank, starting at any step."""

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        step_rows: int | None = None,
        first_step: int = 0,
    ):
        """`first_step`: the step of the run that begins this data; the steps before it had other data."""
        rows = _Rows([store.train(task) for task in range(len(store.tasks))], config)
        train, data = config.train, config.data
        mixture = Mixture(
            [len(plan) for plan in rows.plans],
            sampling=data.sampling,
            temperature=data.sampling_temperature,
            weights=[task.sampling_weight or 0.0 for task in config.tasks],
            seed=train.seed + first_step,
        )
        usual = train.per_device_train_batch_size * train.gradient_accumulation_steps * world_size
        whole = round(train.num_train_epochs * mixture.epoch_rows)
        plan = StepPlan(
            mixture,
            batch_size=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            world_size=world_size,
            total_rows=max(1, whole)
            if train.max_steps is None
            else max(1, train.max_steps - first_step) * (step_rows or usual),
            lengths=rows.lengths if rows.groups_by_length else None,
            fixed_step_rows=step_rows,
        )
        self.step_rows = plan.step_rows
        """Rows of a step over all ranks."""
        self._steps = _Steps(rows, plan, rank)
        self._workers = train.dataloader_num_workers
        self._pin = config.backend.device != "cpu" and torch.cuda.is_available()
        self._first_step = first_step
        self.total_steps = first_step + plan.total_steps
        """Optimizer steps of the run: max_steps, or the number that num_train_epochs take, after the steps on other data."""
        self.steps_per_epoch = mixture.epoch_rows / plan.step_rows
        """Steps of one pass over the data; in general not a whole number."""
        self.task_fractions = tuple(float(fraction) for fraction in mixture.fractions)
        """Each task's fraction of the rows of the run, sum 1."""
        drawn = zip(mixture.row_counts, mixture.fractions, strict=True)
        self.fresh_steps = tuple(int(count / (part * plan.step_rows)) if part else 0 for count, part in drawn)
        """Per task the number of steps at the beginning that repeat none of its rows."""
        trained = [len(samples) if samples.is_unit else int(samples.trained_tokens.sum()) for samples in rows.samples]
        by_task = zip(trained, mixture.row_counts, mixture.fractions, strict=True)
        self.expected_units = np.array(
            [tokens / max(count, 1) * float(part) * plan.step_rows for tokens, count, part in by_task]
        )
        """Per task the mean number of trained tokens, or of pairs, in a step [K]."""

    def origin(self, task: int, sample: int) -> str:
        """The `path:line` of a training sample."""
        return self._steps.rows.samples[task].sample(sample).origin

    def step(self, number: int) -> StepData:
        """One step by its number, from 0 on."""
        return self._steps[number - self._first_step]

    def steps(self, start_step: int = 0) -> Iterator[StepData]:
        """The steps from `start_step` to the end. Each is made in a thread while the step before runs."""
        numbers = range(start_step, self.total_steps)
        made = self._by_workers(numbers) if self._workers else map(self.step, numbers)
        yield from _one_ahead(data.pin_memory() if self._pin else data for data in made)

    def _by_workers(self, numbers: range) -> Iterator[StepData]:
        loader = DataLoader(
            self._steps,
            batch_size=None,
            sampler=[number - self._first_step for number in numbers],
            num_workers=self._workers,
            # A fork of a process with threads or an open device may hang.
            multiprocessing_context="spawn",
            # Without its own generator, the DataLoader would draw from the run's random numbers.
            generator=torch.Generator(),
        )
        with main_module_hidden():
            return iter(loader)


def _one_ahead(items: Iterator[StepData]) -> Iterator[StepData]:
    """The items; each is made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1, "next-step", initializer=_use_this_device, initargs=(_device_index(),)) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _device_index() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _use_this_device(index: int | None) -> None:
    """Select the GPU of the main thread: a new thread starts on the first GPU, where pinning memory would open a context."""
    if index is not None:
        torch.cuda.set_device(index)


class ValidationLoader:
    """All validation samples, packed and padded as in training; the last batch is not dropped.

    Rows go to the ranks in turn. Every rank has the same number of batches; a last one may be only padding.
    """

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        samples: Sequence[TaskSamples] | None = None,
        only: Sequence[int] | None = None,
    ):
        """`samples`: those of each task that are loaded in place of the validation samples. `only`: the tasks whose rows are loaded."""
        if samples is None:
            samples = [store.validation(task) for task in range(len(store.tasks))]
        self._rows = _Rows(samples, config)
        self._rank, self._world_size = rank, world_size
        self._size = config.train.per_device_eval_batch_size or config.train.per_device_train_batch_size
        tasks = np.repeat(np.arange(len(self._rows.plans)), [len(plan) for plan in self._rows.plans])
        rows = np.concatenate([np.arange(len(plan)) for plan in self._rows.plans])
        if only is not None:
            tasks, rows = tasks[np.isin(tasks, only)], rows[np.isin(tasks, only)]
        if self._rows.groups_by_length:
            lengths = np.array([self._rows.lengths[task][row] for task, row in zip(tasks, rows, strict=True)])
            order = np.argsort(lengths, kind="stable")
            tasks, rows = tasks[order], rows[order]
        self.counts = self._rows.counts(tasks.tolist(), rows.tolist())
        """Trained tokens and samples of the whole set, over all ranks."""
        self.rows_of_task = tuple(len(plan) for plan in self._rows.plans)
        """Rows of each task; with packing, a row holds several samples."""
        self._batches = [(tasks[part].tolist(), rows[part].tolist()) for part in self._dealt(len(tasks))]

    def _dealt(self, count: int) -> list[slice]:
        """This rank's batches of so many rows."""
        stride = self._size * self._world_size
        return [
            slice(start + self._rank, min(start + stride, count), self._world_size) for start in range(0, count, stride)
        ]

    def subset(self, tasks: Sequence[int], rows: Sequence[int]) -> StepData:
        """This rank's batches of some rows of the set, and the counts of all these rows. Every rank has as many batches."""
        batches = tuple(self._rows.batch(tasks[part], rows[part]) for part in self._dealt(len(rows)))
        return StepData(batches, self._rows.counts(tasks, rows))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PackedBatch]:
        for tasks, rows in self._batches:
            yield self._rows.batch(tasks, rows)
