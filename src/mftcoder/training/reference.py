"""The reference of the preference losses: log-probabilities of both texts of each pair under the untrained model, computed once.

They are two numbers a pair. A file keeps them, whose name the caller derives from the content of the data and of the model, so a
resumed run and other runs on the same data read them. No second model is in memory: LoRA weights are turned off, and a model that
trains in full has not been trained yet.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from mftcoder.config.kinds import PreferenceKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.columns import Split, TaskSamples
from mftcoder.data.prepared.store import Store
from mftcoder.errors import CheckpointError
from mftcoder.jsonl import atomic_path
from mftcoder.log import say
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.preference import Float, PairTask, needs_reference
from mftcoder.training.step import Pairs

SPLITS: tuple[Split, ...] = ("train", "validation")
Reference = dict[str, list[Float]]
"""Split -> log-probabilities [N, 2] for each task; [0, 2] for a task without a reference."""


def pairs_of_run(
    config: RunConfig,
    store: Store,
    model: LanguageModel,
    backend: Backend,
    path_of: Callable[[], Path],
    *,
    is_trained: bool,
) -> tuple[Pairs | None, Pairs | None]:
    """The preference tasks of a run, for its training and its validation samples; None for a run without.

    `path_of` names the file of the reference. CheckpointError if it is gone and the model `is_trained`, so that it cannot be computed.
    """
    kinds = [task.kind for task in config.tasks]
    if not any(isinstance(kind, PreferenceKind) for kind in kinds):
        return None, None
    reference: Reference = {}
    if wanted := [number for number, kind in enumerate(kinds) if needs_reference(kind)]:
        reference = _reference(config, store, model, backend, path_of, wanted, is_trained=is_trained)

    def pairs(split: Split, samples: Sequence[TaskSamples]) -> Pairs:
        return Pairs(
            [
                PairTask.of(kind, samples[k], reference[split][k] if k in wanted else None)
                if isinstance(kind, PreferenceKind)
                else None
                for k, kind in enumerate(kinds)
            ]
        )

    return pairs("train", _samples(store, "train")), pairs("validation", _samples(store, "validation"))


def _samples(store: Store, split: Split) -> list[TaskSamples]:
    read = store.train if split == "train" else store.validation
    return [read(task) for task in range(len(store.tasks))]


def _reference(
    config: RunConfig,
    store: Store,
    model: LanguageModel,
    backend: Backend,
    path_of: Callable[[], Path],
    wanted: Sequence[int],
    *,
    is_trained: bool,
) -> Reference:
    path = backend.group.run_on_rank0(path_of)
    known = backend.group.run_on_rank0(lambda: read_reference(path))
    if known is not None:
        return known
    if is_trained:
        raise CheckpointError(
            f"{path}: the log-probabilities of this run's reference are gone, and its weights have been trained since. Put the file "
            "back, or choose another output_dir."
        )
    say("computing the log-probabilities of the reference, once")
    made: Reference = {}
    for split in SPLITS:
        samples = _samples(store, split)
        loader = ValidationLoader(
            store,
            config,
            rank=backend.group.data_rank,
            world_size=backend.group.data_world_size,
            samples=samples,
            only=wanted,
        )
        made[split] = _compute(
            model, [len(one) if k in wanted else 0 for k, one in enumerate(samples)], loader, backend
        )
    backend.group.run_on_rank0(lambda: write_reference(path, made))
    return made


def _compute(model: LanguageModel, sizes: Sequence[int], loader: ValidationLoader, backend: Backend) -> list[Float]:
    """Summed log-probabilities [N, 2] of each task's pairs, over all ranks."""
    found = [np.zeros((size, 2)) for size in sizes]
    without_adapter = model.module.disable_adapter() if hasattr(model.module, "disable_adapter") else nullcontext()
    with model.evaluating(), without_adapter:
        for batch in loader:
            starts = (batch.position_ids == 0).flatten()
            real = (batch.task_ids.flatten() >= 0)[starts]
            sums = -model.sample_losses(batch).cpu()[real].numpy()
            for segment, (task, index) in enumerate(batch.samples.tolist()):
                found[task][index, segment % 2] += sums[segment]  # the two texts of a pair follow each other
    return [backend.group.sum_over_ranks(torch.from_numpy(one).to(backend.device)).cpu().numpy() for one in found]


def write_reference(path: Path, reference: Reference) -> None:
    """Write one array for each task and split, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{split}-{task}": one for split, tasks in reference.items() for task, one in enumerate(tasks)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_reference(path: Path) -> Reference | None:
    """What `write_reference` wrote; None if there is no such file."""
    if not path.exists():
        return None
    with np.load(path) as arrays:
        count = len(arrays.files) // len(SPLITS)
        return {split: [arrays[f"{split}-{task}"] for task in range(count)] for split in SPLITS}
