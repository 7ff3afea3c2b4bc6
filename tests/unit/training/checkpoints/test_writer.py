"""A checkpoint written in the background has the state at the time of saving, and a failed write is reported."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.errors import CheckpointError
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.checkpoints.checkpoint import CheckpointStore, Progress
from mftcoder.training.checkpoints.writer import CheckpointWriter, ModelFiles
from mftcoder.training.optimizer import MasterAdamW

CONFIG = TrainConfig(async_save=True)


class Disk:
    """Writes a model's weights when the test allows it, or fails like a full disk."""

    def __init__(self) -> None:
        self.may_write, self.full = threading.Event(), False

    def write(self, module: Any, folder: Path, weights: dict[str, Tensor] | None) -> None:
        assert self.may_write.wait(300)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        folder.mkdir()
        torch.save(module.state_dict() if weights is None else weights, folder / "weights.pt")


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.may_write.set()


@pytest.fixture
def layer() -> nn.Linear:
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    return layer


@pytest.fixture
def optimizer(layer: nn.Linear) -> MasterAdamW:
    return MasterAdamW(layer.named_parameters(), CONFIG)


@pytest.fixture
def writer(tmp_path: Path, layer: nn.Linear, disk: Disk) -> Iterator[CheckpointWriter]:
    store = CheckpointStore(tmp_path, save_total_limit=None, say=print)
    backend = LocalBackend(BackendConfig(device="cpu"))
    with CheckpointWriter(store, backend, CONFIG, ModelFiles(layer, disk.write, lambda *_: None)) as writer:
        yield writer
        disk.may_write.set()


def step(layer: nn.Linear, optimizer: MasterAdamW) -> None:
    layer(torch.ones(2)).sum().backward()
    optimizer.step(0.1)


def test_steps_taken_during_the_write_are_not_in_the_checkpoint(
    writer: CheckpointWriter, layer: nn.Linear, optimizer: MasterAdamW, disk: Disk
) -> None:
    step(layer, optimizer)
    weight = layer.weight.detach().clone()
    moment = optimizer.state_dict()["adamw"]["state"][0]["exp_avg"].clone()
    progress = Progress(step=1, tokens_seen=[5])
    writer.save(progress, optimizer, best=False)
    step(layer, optimizer)
    progress.step, progress.tokens_seen[0] = 2, 10
    assert not layer.weight.equal(weight) and writer.store.all() == []
    disk.may_write.set()
    writer.finish()
    saved = writer.store.newest()
    assert saved and (saved.progress.step, saved.progress.tokens_seen) == (1, [5])
    assert torch.load(saved.model_dir / "weights.pt")["weight"].equal(weight)
    assert saved.optimizer_state()["optimizer"]["adamw"]["state"][0]["exp_avg"].equal(moment)


def test_the_next_save_waits_for_the_one_in_progress(
    writer: CheckpointWriter, optimizer: MasterAdamW, disk: Disk
) -> None:
    writer.save(Progress(step=1), optimizer, best=False)
    threading.Timer(0.2, disk.may_write.set).start()
    writer.save(Progress(step=2), optimizer, best=False)
    assert writer.store.newest()
    writer.finish()
    assert [path.name for path in writer.store.all()] == ["step-00000001", "step-00000002"]


def test_the_callback_gets_the_folder_of_a_checkpoint_that_is_on_disk(
    writer: CheckpointWriter, optimizer: MasterAdamW, disk: Disk
) -> None:
    found: list[tuple[str, bool]] = []
    writer._on_checkpoint = lambda folder: found.append((folder.name, (folder / "files.json").is_file()))
    writer.save(Progress(step=1), optimizer, best=False)
    assert not found
    disk.may_write.set()
    writer.finish()
    assert found == [("step-00000001", True)]


def test_a_failed_write_is_known_and_is_the_error_of_the_next_save(
    writer: CheckpointWriter, optimizer: MasterAdamW, disk: Disk
) -> None:
    disk.may_write.set()
    writer.save(Progress(step=1), optimizer, best=False)
    writer.finish()
    disk.full = True
    writer.save(Progress(step=2), optimizer, best=False)
    while not writer.failed:
        pass
    with pytest.raises(CheckpointError, match=r"step-00000002: .*No space left on device\. Earlier checkpoints"):
        writer.save(Progress(step=3), optimizer, best=False)
    saved = writer.store.newest()
    assert saved and saved.progress.step == 1 and not list(writer.store.folder.glob(".*tmp"))


def test_a_failed_write_is_reported_when_the_run_ends_with_an_error(
    tmp_path: Path, layer: nn.Linear, optimizer: MasterAdamW, disk: Disk
) -> None:
    said: list[str] = []
    store = CheckpointStore(tmp_path, save_total_limit=None, say=said.append)
    files = ModelFiles(layer, disk.write, lambda *_: None)
    disk.full = True
    disk.may_write.set()
    with (
        pytest.raises(KeyError),
        CheckpointWriter(store, LocalBackend(BackendConfig(device="cpu")), CONFIG, files) as it,
    ):
        it.save(Progress(step=1), optimizer, best=False)
        raise KeyError
    assert len(said) == 1 and "step-00000001: the checkpoint cannot be written: [Errno 28]" in said[0]


def test_an_error_of_safetensors_is_a_checkpoint_error(
    tmp_path: Path, layer: nn.Linear, optimizer: MasterAdamW
) -> None:
    """Its errors are neither OSErrors nor RuntimeErrors."""

    def write(module: Any, folder: Path, weights: dict[str, Tensor] | None) -> None:
        save_file(module.state_dict(), folder / "is not there" / "model.safetensors")

    store = CheckpointStore(tmp_path, save_total_limit=None, say=print)
    backend = LocalBackend(BackendConfig(device="cpu"))
    files = ModelFiles(layer, write, lambda *_: None)
    with (
        CheckpointWriter(store, backend, TrainConfig(), files) as writer,
        pytest.raises(CheckpointError, match="step-00000001: the checkpoint cannot be written"),
    ):
        writer.save(Progress(step=1), optimizer, best=False)
    assert not list(tmp_path.glob(".*tmp"))
