"""Write checkpoints: rank 0 writes all of it, or, sharded, each rank its own part; at once, or in the background.

With `train.async_save` training waits only for a copy to the host's memory, from which a thread writes. At most one write is in
progress; the next one waits for it. A write that failed ends the run at the next step, the next save or the end.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.torch_version import TorchVersion

from mftcoder.config.schema import TrainConfig
from mftcoder.training.backends.base import Backend
from mftcoder.training.checkpoints.checkpoint import SHARDS, CheckpointStore, Progress, random_state
from mftcoder.training.optimizer import Optimizer
from mftcoder.training.sharded_state import ShardedState, trained_weights, write_model_shards, write_shards

# torch 2.11.0 closes a DefaultStager after its first `stage`, and the second call raises KeyError; fixed in 2.13.0.
STAGERS_SERVE_ONCE = torch.__version__ < TorchVersion("2.13")


@dataclass(frozen=True)
class ModelFiles:
    """How the model of a run is written."""

    module: Any
    write: Callable[..., None]  # (module, folder, weights by name or None for the module's own)
    write_settings: Callable[[Any, Path], None]  # (module, folder): everything except the weights


@dataclass(frozen=True)
class Contents:
    """What one rank writes of a checkpoint."""

    progress: Progress
    best: bool
    weights: dict[str, Tensor] | None  # complete; None: the module has them, or they are sharded
    state: dict[str, Any]  # for optimizer/state.pt
    sharded: ShardedState | None


class CheckpointWriter:
    """Saves a run. All ranks call each method in the same order, except `failed`."""

    def __init__(
        self,
        store: CheckpointStore,
        backend: Backend,
        config: TrainConfig,
        model: ModelFiles,
        on_checkpoint: Callable[[Path], object] = lambda folder: None,
    ):
        self.store = store
        self._on_checkpoint, self._step = on_checkpoint, 0  # of the write in progress
        self._backend, self._model = backend, model
        self._sharded = config.save_format == "sharded"
        self._asynchronous = config.async_save
        self._stager: DefaultStager | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_use, initargs=(backend.device,))
        self._write_in_progress: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the write in progress, and report a background write failure that was not raised yet."""
        self._thread.shutdown()
        if self._write_in_progress and (problem := self._write_in_progress.exception()):
            self.store.say(str(problem))

    @property
    def failed(self) -> bool:
        """True if this rank's last write failed; `finish` raises its error."""
        write = self._write_in_progress
        return write is not None and write.done() and write.exception() is not None

    def finish(self) -> None:
        """Wait for the write in progress. CheckpointError on every rank if it failed."""
        write, self._write_in_progress = self._write_in_progress, None
        if write is None:
            return
        self._backend.group.run_on_rank0(write.result)
        wait([write])
        if self._backend.group.rank == 0:
            self._on_checkpoint(self.store.folder_of(self._step))

    def save(self, progress: Progress, optimizer: Optimizer, *, best: bool) -> None:
        """Save the run; with `train.async_save` copy it, and return before the copy is on disk."""
        self.finish()
        self._backend.group.run_on_rank0(lambda: self.store.begin(progress.step))
        contents = self._contents(progress, optimizer, best=best)
        if self._asynchronous:
            contents = self._copied(contents, self._usable_stager())
        self._write_in_progress, self._step = self._thread.submit(self._write, contents), progress.step
        if not self._asynchronous:
            self.finish()

    def _usable_stager(self) -> DefaultStager:
        """The stager of the last save, which keeps its memory, if this version of torch allows using it again."""
        if self._stager is None or STAGERS_SERVE_ONCE:
            self._stager = _stager(self._backend.device)
        return self._stager

    def _contents(self, progress: Progress, optimizer: Optimizer, *, best: bool) -> Contents:
        backend, module = self._backend, self._model.module
        sharded = backend.sharded_state(module, optimizer) if self._sharded else None
        weights = None if sharded and sharded.model else backend.full_state_dict(module)
        state = {
            "optimizer": sharded.rest if sharded else optimizer.state_dict(),
            "random": backend.group.all_gather(random_state()),
        }
        return Contents(progress, best, weights, state, sharded)

    def _copied(self, contents: Contents, stager: DefaultStager) -> Contents:
        """A copy in memory that training does not change, without what this rank does not write."""
        sharded, weights = contents.sharded, contents.weights
        if self._backend.group.rank != 0:
            contents = replace(contents, weights=None, state={})
        elif weights is None and not (sharded and sharded.model):
            weights = trained_weights(self._model.module)
        copied: Any = stager.stage(
            {
                "weights": weights,
                "state": contents.state,
                "model": sharded.model if sharded else {},
                "optimizer": sharded.optimizer if sharded else {},
            }
        )
        return replace(
            contents,
            progress=deepcopy(contents.progress),
            weights=copied["weights"],
            state=copied["state"],
            sharded=replace(sharded, model=copied["model"], optimizer=copied["optimizer"]) if sharded else None,
        )

    def _write(self, contents: Contents) -> None:
        """Write this rank's part; rank 0 then makes it the newest checkpoint."""
        if self._backend.group.rank == 0:
            self.store.save(contents.progress, lambda folder: self._write_parts(contents, folder), best=contents.best)
        elif contents.sharded:
            self._write_shards(contents.sharded, self.store.temporary_folder_of(contents.progress.step))

    def _write_parts(self, contents: Contents, folder: Path) -> None:
        sharded = contents.sharded
        if sharded:
            self._write_shards(sharded, folder)
        if sharded and sharded.model:
            self._model.write_settings(self._model.module, folder / "model")
        else:
            self._model.write(self._model.module, folder / "model", contents.weights)
        torch.save(contents.state, folder / "optimizer" / "state.pt")

    def _write_shards(self, sharded: ShardedState, folder: Path) -> None:
        write_shards(folder / SHARDS, sharded.optimizer, sharded.group)
        if sharded.model:
            write_model_shards(folder / "model", sharded.model, sharded.group)


def _use(device: torch.device) -> None:
    """Set the device of this thread: each thread starts on the first GPU, and copies wait for the thread's own device."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _stager(device: torch.device) -> DefaultStager:
    """A stager that copies to the host's memory and keeps that memory for the next save; from a GPU, pinned and asynchronous."""
    gpu = device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
        )
    )
