"""When a checkpoint's contents leave the run and when they are on disk: at once, or behind the training.

Goes in: the run's state on every rank. Comes out: a checkpoint in the store, written by rank 0 or, sharded, by all ranks. With
`train.async_save` training waits for the copy to the host's memory only; a thread writes from it. One write is under way at most,
the next one waits for it, and one that failed ends the run at the next step, the next save or the end, whichever is first.
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
from mftcoder.training.checkpoints.checkpoint import SHARES, CheckpointStore, Progress, random_state
from mftcoder.training.optimizer import Optimizer
from mftcoder.training.sharded_state import Shares, trained_weights, write_model_shares, write_shares

# torch 2.11 closes a DefaultStager after its first `stage`; a second one ends in a KeyError. Seen in 2.11.0, gone in 2.13.0.
STAGERS_SERVE_ONCE = torch.__version__ < TorchVersion("2.13")


@dataclass(frozen=True)
class ModelFiles:
    """How the model of a run becomes files."""

    module: Any
    write: Callable[..., None]  # (module, folder, weights by name or None for the module's own)
    write_settings: Callable[[Any, Path], None]  # (module, folder): all but the weights


@dataclass(frozen=True)
class Contents:
    """What one rank puts into a checkpoint."""

    progress: Progress
    best: bool
    weights: dict[str, Tensor] | None  # whole; None: the module's own, or those of the shares
    state: dict[str, Any]  # for optimizer/state.pt
    shares: Shares | None


class CheckpointWriter:
    """Saves a run. All ranks call each method, in the same order, but for `failed`."""

    def __init__(
        self,
        store: CheckpointStore,
        backend: Backend,
        config: TrainConfig,
        model: ModelFiles,
        on_checkpoint: Callable[[Path], object] = lambda folder: None,
    ):
        self.store = store
        self._on_checkpoint, self._step = on_checkpoint, 0  # of the write under way
        self._backend, self._model = backend, model
        self._sharded = config.save_format == "sharded"
        self._asynchronous = config.async_save
        self._stager: DefaultStager | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_use, initargs=(backend.device,))
        self._write_under_way: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """However the run ends, what is being written is written to its end; a failure that nobody asked after is said."""
        self._thread.shutdown()
        if self._write_under_way and (problem := self._write_under_way.exception()):
            self.store.say(str(problem))

    @property
    def failed(self) -> bool:
        """Whether this rank knows of a write that failed; `finish` raises its error."""
        write = self._write_under_way
        return write is not None and write.done() and write.exception() is not None

    def finish(self) -> None:
        """Wait for the write under way. CheckpointError on every rank if it failed."""
        write, self._write_under_way = self._write_under_way, None
        if write is None:
            return
        self._backend.run_on_rank0(write.result)
        wait([write])
        if self._backend.rank == 0:
            self._on_checkpoint(self.store.folder_of(self._step))

    def save(self, progress: Progress, optimizer: Optimizer, *, best: bool) -> None:
        """Save the run as it stands; with `train.async_save` a copy of it, and return before that is on disk."""
        self.finish()
        self._backend.run_on_rank0(lambda: self.store.begin(progress.step))
        contents = self._contents(progress, optimizer, best=best)
        if self._asynchronous:
            contents = self._copied(contents, self._usable_stager())
        self._write_under_way, self._step = self._thread.submit(self._write, contents), progress.step
        if not self._asynchronous:
            self.finish()

    def _usable_stager(self) -> DefaultStager:
        """The stager of the last save, which keeps its memory, where this torch allows a second use."""
        if self._stager is None or STAGERS_SERVE_ONCE:
            self._stager = _stager(self._backend.device)
        return self._stager

    def _contents(self, progress: Progress, optimizer: Optimizer, *, best: bool) -> Contents:
        backend, module = self._backend, self._model.module
        shares = backend.shares(module, optimizer) if self._sharded else None
        weights = None if shares and shares.model else backend.whole_weights(module)
        state = {
            "optimizer": shares.rest if shares else optimizer.state_dict(),
            "random": backend.share(random_state()),
        }
        return Contents(progress, best, weights, state, shares)

    def _copied(self, contents: Contents, stager: DefaultStager) -> Contents:
        """The same in memory that training does not write to; what this rank does not write is left out."""
        shares, weights = contents.shares, contents.weights
        if self._backend.rank != 0:
            contents = replace(contents, weights=None, state={})
        elif weights is None and not (shares and shares.model):
            weights = trained_weights(self._model.module)
        copied: Any = stager.stage(
            {
                "weights": weights,
                "state": contents.state,
                "model": shares.model if shares else {},
                "optimizer": shares.optimizer if shares else {},
            }
        )
        return replace(
            contents,
            progress=deepcopy(contents.progress),
            weights=copied["weights"],
            state=copied["state"],
            shares=replace(shares, model=copied["model"], optimizer=copied["optimizer"]) if shares else None,
        )

    def _write(self, contents: Contents) -> None:
        """This rank's part; rank 0 then makes it the newest checkpoint."""
        if self._backend.rank == 0:
            self.store.save(contents.progress, lambda folder: self._write_parts(contents, folder), best=contents.best)
        elif contents.shares:
            self._write_shares(contents.shares, self.store.folder_of(contents.progress.step))

    def _write_parts(self, contents: Contents, folder: Path) -> None:
        shares = contents.shares
        if shares:
            self._write_shares(shares, folder)
        if shares and shares.model:
            self._model.write_settings(self._model.module, folder / "model")
        else:
            self._model.write(self._model.module, folder / "model", contents.weights)
        torch.save(contents.state, folder / "optimizer" / "state.pt")

    def _write_shares(self, shares: Shares, folder: Path) -> None:
        write_shares(folder / SHARES, shares.optimizer, shares.group)
        if shares.model:
            write_model_shares(folder / "model", shares.model, shares.group)


def _use(device: torch.device) -> None:
    """Make the run's device that of this thread: each thread starts on the first GPU, and copies wait for the thread's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _stager(device: torch.device) -> DefaultStager:
    """Copies to the host's memory, which it keeps for the next time; pinned, and without waiting for each, from a GPU."""
    gpu = device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
        )
    )
