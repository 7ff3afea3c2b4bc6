"""Every family of the table whose rows can be shared: two real ranks with a slice of the rows each make the whole rows' gradients."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.app.training.train import train
from mftcoder.config.load import load_config
from mftcoder.config.schema import BackendConfig
from mftcoder.data.batches.loader import PackedBatch
from mftcoder.errors import ConfigError, ModelError
from mftcoder.kernels import attention
from mftcoder.kernels.context_group import ALONE, ContextGroup
from mftcoder.models.loading.load import load_folder
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.forward.isolation import verify_isolation
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.focal import SampleFocus
from tests.forked import PATIENCE, context, finish
from tests.integration.test_families import TINY, tiny_folder
from tests.integration.test_train_cli import write_config, write_tasks
from tests.ranks import free_port

SHARED = sorted(TINY.keys() - {"gemma2"})  # its scores are capped, which needs attention over whole rows
LENGTHS = (
    23,
    1,
    5,
    9,
)  # a row of 39 positions, 38 of them samples: slices of 20, the first cut in the middle of a sample


def packed_rows() -> PackedBatch:
    """Two rows of three samples and a position of padding each, two tasks, every third position untrained."""
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].repeat(2, 1)
    tasks = torch.cat([torch.full((length,), number % 2) for number, length in enumerate(LENGTHS)])[None].repeat(2, 1)
    tasks[:, 23] = -1
    ids = torch.randint(5, 900, positions.shape, generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, dims=1)
    targets[:, ::3] = targets[:, 23] = -100
    return PackedBatch(ids, targets, positions, tasks, torch.zeros(0, 2, dtype=torch.int64))


def loss_and_gradients(folder: Path, context: ContextGroup) -> dict[str, np.ndarray]:
    """What one micro-batch with focal weights and the routers' loss gives on this rank."""
    model = load_folder(folder, dtype=torch.float32, device="cpu", attn_implementation="segments")
    language_model = LanguageModel(model, attn_implementation="segments", num_tasks=2, context=context)
    verify_isolation(language_model, (torch.arange(5, 45), torch.arange(7, 50)))
    batch = packed_rows()
    coefficients = (batch.targets != -100) / torch.tensor([[31.0], [17.0]])
    # As in a step: every rank of the group counts the rows whole, so that a rank's share of the routers' loss is 1 / size.
    losses = language_model.losses(batch, coefficients, SampleFocus(2.0, False, context), 0.5 / context.size)
    losses.objective.backward()
    found = {
        "objective": losses.value.numpy(),
        "task losses": losses.loss_sum.numpy(),
        "tokens": np.array(losses.tokens),
    }
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: grad.numpy() for name, grad in grads.items()}


def be_one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    attention.register()
    group = ProcessGroup(BackendConfig(name="ddp", device="cpu", context_parallel_size=2))
    with group.joined():
        for architecture in SHARED:
            np.savez(folder / f"{architecture}.{rank}.npz", **loss_and_gradients(folder / architecture, group.context))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Iterator[Path]:
    """Of each architecture its tiny model, and beside it what each of the two ranks made of it."""
    folder = tmp_path_factory.mktemp("families")
    for architecture in SHARED:
        tiny_folder(folder / architecture, architecture, tiny_tokenizer_dir)
    port = free_port()
    processes = [context().Process(target=be_one_of_two, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [finish(process, 0) for process in processes] == [0, 0]
    yield folder


@pytest.mark.parametrize("architecture", SHARED)
def test_two_slices_of_rows_make_the_gradients_of_the_rows(folder: Path, architecture: str) -> None:
    attention.register()
    whole = loss_and_gradients(folder / architecture, ALONE)
    slices: list[Any] = [np.load(folder / f"{architecture}.{rank}.npz") for rank in range(2)]
    assert set(slices[0]) | set(slices[1]) == set(whole)
    for name, expected in whole.items():
        summed = sum(part[name] for part in slices if name in part)
        np.testing.assert_allclose(summed, expected, atol=2e-5, rtol=1e-4, err_msg=name)


def test_rows_that_cannot_be_shared_are_refused_with_the_numbers(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path, tiny_llama_dir, write_tasks(tmp_path / "data", 4)))
    share = {"backend": config.backend.model_copy(update={"context_parallel_size": 3})}
    with pytest.raises(
        ModelError, match=r"its 4 attention heads cannot be divided evenly among 3 ranks. Set it to 2, 4"
    ):
        train(config.model_copy(update=share))
    monkeypatch.setenv("RANK", "1")  # not the first, which looks at the model
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ConfigError, match=r"3 ranks share each row, but 4 processes were started. Start a multiple of 3"
    ):
        train(config.model_copy(update=share))
    assert not (tmp_path / "run").exists()
