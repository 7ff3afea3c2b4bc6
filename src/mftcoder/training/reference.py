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
    passes = _Passes(config, store, model, backend)
    wanted = [number for number, kind in enumerate(kinds) if kind.needs_reference]
    reference: Arrays = {}
    if wanted:
        path = backend.group.run_on_rank0(lambda: reference_path(config, store, weights()))
        known = backend.group.run_on_rank0(lambda: read_arrays(path))
        reference = known or passes.reference(path, wanted, is_trained=resumed and config.adapter.type == "full")
    token_logps = passes.token_logps(begun=begun)

    def pairs(split: Split) -> Pairs:
        samples = passes.samples(split)
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


LOGPS = ("sampled", "untrained")


@dataclass(frozen=True)
class _Passes:
    """Forward passes without gradients over a run's samples. Their results are sums over all ranks, kept in files."""

    config: RunConfig
    store: Store
    model: LanguageModel
    backend: Backend

    def samples(self, split: Split) -> list[TaskSamples]:
        read = self.store.train if split == "train" else self.store.validation
        return [read(task) for task in range(len(self.store.tasks))]

    def _loader(self, samples: list[TaskSamples], only: Sequence[int]) -> ValidationLoader:
        ranks = {"rank": self.backend.group.data_rank, "world_size": self.backend.group.data_world_size}
        return ValidationLoader(self.store, self.config, **ranks, samples=samples, only=only)

    def _summed(self, found: Float) -> Float:
        on_device = torch.from_numpy(found).to(self.backend.device)
        return self.backend.group.sum_over_ranks(on_device).cpu().numpy()

    def _adapter_off(self) -> AbstractContextManager[Any]:
        module = self.model.module
        return module.disable_adapter() if hasattr(module, "disable_adapter") else nullcontext()

    def reference(self, path: Path, wanted: Sequence[int], *, is_trained: bool) -> Arrays:
        """Log-probabilities [N, 2] of each task's pairs; [0, 2] of a task without a reference."""
        if is_trained:
            raise CheckpointError(
                f"{path}: the log-probabilities of this run's reference are gone, and its weights have been trained since. Put the file "
                "back, or choose another output_dir."
            )
        say("computing the log-probabilities of the reference, once")
        made: Arrays = {}
        for split in SPLITS:
            samples = self.samples(split)
            found = [np.zeros((len(one) if k in wanted else 0, 2)) for k, one in enumerate(samples)]
            self._add_pairs(found, self._loader(samples, wanted))
            made |= {f"{split}-{k}": self._summed(one) for k, one in enumerate(found)}
        self.backend.group.run_on_rank0(lambda: _write_arrays(path, made))
        return made

    def _add_pairs(self, found: list[Float], loader: ValidationLoader) -> None:
        """Add the summed log-probabilities of both texts of each pair to this rank's [N, 2] of its task."""
        with self.model.evaluating(), self._adapter_off():
            for batch in loader:
                sums = -self.model.sample_losses(batch).cpu()[batch.real_segments].numpy()
                for segment, (task, index) in enumerate(batch.samples.tolist()):
                    found[task][index, segment % 2] += sums[segment]  # the two texts of a pair follow each other

    def token_logps(self, *, begun: bool) -> Arrays:
        """`sampled-train-0`: the log-probabilities of all trained tokens of a task of sampled answers. A task has those that its kind needs.

        They are computed when the run begins this data, and kept in its folder. A run that goes on within the data reads them, because
        its model has moved since. CheckpointError if the file is gone then.
        """
        kinds = {k: task.kind for k, task in enumerate(self.config.tasks) if isinstance(task.kind, GrpoKind)}
        needed = {
            "sampled": [k for k, kind in kinds.items() if kind.epsilon is not None],
            "untrained": [k for k, kind in kinds.items() if kind.beta > 0],
        }
        if not any(needed.values()):
            return {}
        path = self.config.output_path / "sampled" / f"{self.store.fingerprint}.npz"
        known = self.backend.group.run_on_rank0(lambda: read_arrays(path) if begun else None)
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
            found = self._of_tokens(self.samples(split), needed[name], untrained=name == "untrained")
            made |= {f"{name}-{split}-{k}": one for k, one in found.items()}
        self.backend.group.run_on_rank0(lambda: _write_arrays(path, made))
        return made

    def _of_tokens(self, samples: list[TaskSamples], tasks: Sequence[int], *, untrained: bool) -> dict[int, Float]:
        """Log-probabilities of all trained tokens of these tasks."""
        model, loader = self.model, self._loader(samples, tasks)
        ends = {k: np.cumsum(samples[k].trained_tokens, dtype=np.int64) for k in tasks}
        found = {k: np.zeros(int(ends[k][-1]) if len(ends[k]) else 0) for k in tasks}
        with model.evaluating(), self._adapter_off() if untrained else nullcontext():
            for batch in loader:
                focus = BatchRollouts([None] * len(samples), loader.counts, batch, model.context.own, None)
                losses = model.token_losses(batch).cpu().numpy()
                owners = model.context.own(batch.task_ids).flatten()[model.context.own(batch.targets != -100).flatten()]
                for k in tasks:
                    mine = (owners == k).numpy()
                    index = focus.samples.numpy()[mine]
                    starts = ends[k][index] - samples[k].trained_tokens[index]
                    found[k][starts + focus.places.numpy()[mine]] = -losses[mine]
        return {k: self._summed(one) for k, one in found.items()}


def _write_arrays(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)
