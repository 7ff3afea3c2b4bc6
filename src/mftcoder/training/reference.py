"""The reference of the preference losses: log-probabilities of both texts of each pair under the untrained model, computed once.
Sampled answers have theirs token by token, under the model that the run begins its data with, and under the untrained one (KL).

They are two numbers a pair. A file keeps them, whose name the caller derives from the content of the data and of the model, so a
resumed run and other runs on the same data read them. No second model is in memory: LoRA weights are turned off, and a model that
trains in full has not been trained yet.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder import cache
from mftcoder.config.kinds import GrpoKind, PreferenceKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.columns import Split, TaskSamples
from mftcoder.data.prepared.store import Store
from mftcoder.errors import CheckpointError
from mftcoder.jsonl import atomic_path
from mftcoder.log import say
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.preference import Float, PairTask
from mftcoder.training.losses.rollouts import BatchRollouts, RolloutTask, TokenLogps
from mftcoder.training.step import Pairs

SPLITS: tuple[Split, ...] = ("train", "validation")
Arrays = dict[str, Float]
"""`train-0`: one array for a split and a task."""


def reference_path(config: RunConfig, store: Store, weights: Sequence[Path]) -> Path:
    """Where a run's reference is kept. The name depends on the data, and on the content of the model's weight files and its precision."""
    model, kept = config.model, config.model.modules_to_not_convert
    precision = " ".join(map(str, (model.dtype, model.quantization, config.train.fp8_recipe, *kept)))
    name = cache.key("reference", store.fingerprint, precision, *weights)
    return cache.cache_root(config.data.cache_dir) / "reference" / f"{name}.npz"


@dataclass(frozen=True)
class RunPairs:
    """The tasks of pairs and of sampled answers of a run, for its training samples and for its validation samples; None for a run without."""

    train: Pairs | None = None
    validation: Pairs | None = None


def pairs_of_run(
    config: RunConfig,
    store: Store,
    model: LanguageModel,
    backend: Backend,
    weights: Callable[[], Sequence[Path]],
    *,
    resumed: bool,
    begun: bool = False,
) -> RunPairs:
    """The tasks of pairs and of sampled answers, with the reference that they need. `weights` finds the model's weight files.

    `resumed`: the model has been trained. `begun`: on this data. CheckpointError if a reference is gone that cannot be computed again.
    """
    kinds = [task.kind for task in config.tasks]
    if not any(isinstance(kind, PreferenceKind | GrpoKind) for kind in kinds):
        return RunPairs()
    wanted = [number for number, kind in enumerate(kinds) if kind.needs_reference]
    reference: Arrays = {}
    if wanted:
        path = backend.group.run_on_rank0(lambda: reference_path(config, store, weights()))
        known = backend.group.run_on_rank0(lambda: read_arrays(path))
        is_trained = resumed and config.adapter.type == "full"
        reference = known or _make(config, store, model, backend, path, wanted, is_trained=is_trained)

    token_logps = _token_logps(config, store, model, backend, begun=begun)

    def pairs(split: Split) -> Pairs:
        samples = _samples(store, split)
        of_pairs = [
            PairTask.of(kind, samples[k], reference[f"{split}-{k}"] if k in wanted else None)
            if isinstance(kind, PreferenceKind)
            else None
            for k, kind in enumerate(kinds)
        ]
        rollouts = [
            RolloutTask.of(kind, samples[k], TokenLogps(*(token_logps.get(f"{name}-{split}-{k}") for name in LOGPS)))
            if isinstance(kind, GrpoKind)
            else None
            for k, kind in enumerate(kinds)
        ]
        return Pairs(of_pairs, rollouts if any(rollouts) else ())

    return RunPairs(pairs("train"), pairs("validation"))


def _samples(store: Store, split: Split) -> list[TaskSamples]:
    read = store.train if split == "train" else store.validation
    return [read(task) for task in range(len(store.tasks))]


def _make(
    config: RunConfig,
    store: Store,
    model: LanguageModel,
    backend: Backend,
    path: Path,
    wanted: Sequence[int],
    *,
    is_trained: bool,
) -> Arrays:
    """Log-probabilities [N, 2] of each task's pairs; [0, 2] of a task without a reference."""
    if is_trained:
        raise CheckpointError(
            f"{path}: the log-probabilities of this run's reference are gone, and its weights have been trained since. Put the file "
            "back, or choose another output_dir."
        )
    say("computing the log-probabilities of the reference, once")
    made: Arrays = {}
    for split in SPLITS:
        samples = _samples(store, split)
        sizes = [len(one) if k in wanted else 0 for k, one in enumerate(samples)]
        found = _compute(model, sizes, _loader(config, store, backend, samples, wanted), backend)
        made |= {f"{split}-{k}": one for k, one in enumerate(found)}
    backend.group.run_on_rank0(lambda: _write_arrays(path, made))
    return made


def _loader(
    config: RunConfig, store: Store, backend: Backend, samples: list[TaskSamples], only: Sequence[int]
) -> ValidationLoader:
    ranks = {"rank": backend.group.data_rank, "world_size": backend.group.data_world_size}
    return ValidationLoader(store, config, **ranks, samples=samples, only=only)


def _compute(model: LanguageModel, sizes: Sequence[int], loader: ValidationLoader, backend: Backend) -> list[Float]:
    """Summed log-probabilities [N, 2] of each task's pairs, over all ranks."""
    found = [np.zeros((size, 2)) for size in sizes]
    with model.evaluating(), _adapter_off(model):
        for batch in loader:
            starts = (batch.position_ids == 0).flatten()
            real = (batch.task_ids.flatten() >= 0)[starts]
            sums = -model.sample_losses(batch).cpu()[real].numpy()
            for segment, (task, index) in enumerate(batch.samples.tolist()):
                found[task][index, segment % 2] += sums[segment]  # the two texts of a pair follow each other
    return [backend.group.sum_over_ranks(torch.from_numpy(one).to(backend.device)).cpu().numpy() for one in found]


LOGPS = ("sampled", "untrained")


def _token_logps(config: RunConfig, store: Store, model: LanguageModel, backend: Backend, *, begun: bool) -> Arrays:
    """`sampled-train-0`: the log-probabilities of all trained tokens of a task of sampled answers. A task has those that its kind needs.

    They are computed when the run begins this data, and kept in its folder. A run that goes on within the data reads them, because
    its model has moved since. CheckpointError if the file is gone then.
    """
    kinds = {k: task.kind for k, task in enumerate(config.tasks) if isinstance(task.kind, GrpoKind)}
    needed = {
        "sampled": [k for k, kind in kinds.items() if kind.epsilon is not None],
        "untrained": [k for k, kind in kinds.items() if kind.beta > 0],
    }
    if not any(needed.values()):
        return {}
    path = config.output_path / "sampled" / f"{store.fingerprint}.npz"
    known = backend.group.run_on_rank0(lambda: read_arrays(path) if begun else None)
    if begun and known is None:
        raise CheckpointError(
            f"{path}: the log-probabilities of the sampled answers are gone, and the model has been trained since. Put the file back, or "
            "choose another output_dir."
        )
    if known is not None:
        return known
    say("computing the log-probabilities of the sampled answers, once")
    made: Arrays = {}
    for name, split in ((name, split) for name in LOGPS for split in SPLITS if needed[name]):
        samples = _samples(store, split)
        loader = _loader(config, store, backend, samples, needed[name])
        found = _of_tokens(model, samples, needed[name], loader, backend, untrained=name == "untrained")
        made |= {f"{name}-{split}-{k}": one for k, one in found.items()}
    backend.group.run_on_rank0(lambda: _write_arrays(path, made))
    return made


def _of_tokens(
    model: LanguageModel,
    samples: Sequence[TaskSamples],
    tasks: Sequence[int],
    loader: ValidationLoader,
    backend: Backend,
    *,
    untrained: bool,
) -> dict[int, Float]:
    """Log-probabilities of all trained tokens of these tasks, over all ranks."""
    ends = {k: np.cumsum(samples[k].trained_tokens, dtype=np.int64) for k in tasks}
    found = {k: np.zeros(int(ends[k][-1]) if len(ends[k]) else 0) for k in tasks}
    with model.evaluating(), _adapter_off(model) if untrained else nullcontext():
        for batch in loader:
            focus = BatchRollouts([None] * len(samples), loader.counts, batch, model.context.own, None)
            losses = model.token_losses(batch).cpu().numpy()
            owners = model.context.own(batch.task_ids).flatten()[model.context.own(batch.targets != -100).flatten()]
            for k in tasks:
                mine = (owners == k).numpy()
                index = focus.samples.numpy()[mine]
                starts = ends[k][index] - samples[k].trained_tokens[index]
                found[k][starts + focus.places.numpy()[mine]] = -losses[mine]
    device = backend.device
    return {k: backend.group.sum_over_ranks(torch.from_numpy(one).to(device)).cpu().numpy() for k, one in found.items()}


def _adapter_off(model: LanguageModel) -> AbstractContextManager[Any]:
    return model.module.disable_adapter() if hasattr(model.module, "disable_adapter") else nullcontext()


def _write_arrays(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)
