"""A model sharded over two real ranks: its steps, its states and its files are those of one device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.data.batches.loader import PackedBatch
from mftcoder.errors import ConfigError
from mftcoder.kernels import attention
from mftcoder.models.loading.load import load_folder
from mftcoder.training.backends.fsdp2 import Fsdp2Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.sharded_state import allocate_full, insert_tensors, read_shards, write_model_shards, write_shards
from tests.ranks import Ask, two_ranks

CONFIG = TrainConfig(weight_decay=0.1, max_grad_norm=0.5)
RATES = (0.01, 0.02)


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with two_ranks("fsdp2") as ask:
        yield ask


def model_in(folder: Path, dtype: torch.dtype) -> LanguageModel:
    attention.register()
    module = load_folder(folder, dtype=dtype, device="cpu", attn_implementation="segments")
    return LanguageModel(module, attn_implementation="segments", num_tasks=1)


def objective(model: LanguageModel, rank: int) -> Tensor:
    """The summed token losses of a sample of the rank's own length."""
    ids = torch.arange(20, 30 + 5 * rank)[None]
    positions = torch.arange(ids.shape[1])[None]
    batch = PackedBatch(ids, ids.roll(-1, 1), positions, torch.zeros_like(ids), torch.zeros(0, 2, dtype=torch.int64))
    return model.losses(batch, torch.full(ids.shape, 0.02)).objective


def placed(backend: Fsdp2Backend, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[LanguageModel, Any]:
    model = model_in(folder, dtype)
    backend.place(model, CONFIG)
    return model, backend.optimizer(model.module.named_parameters(), CONFIG)


def take_steps(backend: Fsdp2Backend, model: LanguageModel, optimizer: Any, rates: tuple[float, ...]) -> list[float]:
    norms = []
    for rate in rates:
        optimizer.backward(objective(model, backend.group.rank), last=True)
        optimizer.sum_gradients()
        norms.append(float(optimizer.step(rate)))
    return norms


def one_device(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, MasterAdamW, list[float]]:
    """The module, optimizer and norms of the gradients after the steps of both ranks' samples."""
    model = model_in(folder, dtype)
    optimizer = MasterAdamW(model.module.named_parameters(), CONFIG)
    norms = []
    for rate in RATES:
        for rank in range(2):
            objective(model, rank).backward()
        norms.append(float(optimizer.step(rate)))
    return model.module, optimizer, norms


def sizes_and_full_state(backend: Fsdp2Backend, folder: Path) -> tuple[dict[str, int], Any]:
    model, _ = placed(backend, folder)
    weights = dict(model.module.named_parameters())
    assert all(isinstance(weight, DTensor) for weight in weights.values())
    return {name: weight.to_local().numel() for name, weight in weights.items()}, backend.full_state_dict(model.module)


def test_each_rank_holds_half_and_rank_0_can_gather_everything(ask: Ask, tiny_llama_dir: Path) -> None:
    (on_first, whole), (on_second, nothing) = ask(sizes_and_full_state, tiny_llama_dir)
    saved = load_file(tiny_llama_dir / "model.safetensors")
    assert whole.keys() >= saved.keys() and all(whole[name].equal(saved[name]) for name in saved)
    assert all(tensor.numel() == 0 for name, tensor in nothing.items() if name in on_second)
    for name, weight in saved.items():
        assert on_first[name] + on_second[name] == weight.numel() and on_first[name] >= on_second[name] > 0


def steps_and_state(backend: Fsdp2Backend, folder: Path, dtype: torch.dtype) -> tuple[list[float], Any, Any]:
    model, optimizer = placed(backend, folder, dtype)
    norms = take_steps(backend, model, optimizer, RATES)
    return norms, backend.full_state_dict(model.module), optimizer.state_dict()


def test_steps_on_shards_are_those_of_one_device(ask: Ask, tiny_llama_dir: Path) -> None:
    module, optimizer, norms = one_device(tiny_llama_dir)
    (found, weights, state), (other, _, _) = ask(steps_and_state, tiny_llama_dir, torch.float32)
    assert found == other == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.5  # each step was clipped
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weights[name], weight.detach(), atol=1e-5, rtol=1e-5)
    expected = optimizer.state_dict()
    assert state["masters"] == expected["masters"] == []
    torch.testing.assert_close(state["adamw"]["state"], expected["adamw"]["state"], atol=1e-5, rtol=1e-4)
    assert state["adamw"]["param_groups"] == expected["adamw"]["param_groups"]


class Sums(TorchDispatchMode):
    """Counts the sums of shards over ranks that start inside it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def steps_of_three_passes(
    backend: Fsdp2Backend, folder: Path, dtype: torch.dtype, each: bool | str
) -> tuple[list[list[int]], list[float], dict[str, Tensor]]:
    """Of two steps: the sums in each of their passes, their norms, and the weights after them."""
    config = CONFIG.model_copy(update={"sync_each_batch": each})
    model = model_in(folder, dtype)
    backend.place(model, config)
    optimizer = backend.optimizer(model.module.named_parameters(), config)
    counts, norms = [], []
    for rate in RATES:
        in_passes = []
        for number in range(3):
            loss = objective(model, backend.group.rank + number)
            with Sums() as sums:
                optimizer.backward(loss, last=number == 2)
            in_passes.append(sums.count)
        optimizer.sum_gradients()
        norms.append(float(optimizer.step(rate)))
        counts.append(in_passes)
    return counts, norms, backend.full_state_dict(model.module) or {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_are_summed_once_a_step_are_the_same(ask: Ask, tiny_llama_dir: Path, dtype: torch.dtype) -> None:
    """All in the last pass, one message per layer and one for the rest; until then bfloat16 gradients add up in float32."""
    counts, norms, weights = ask(steps_of_three_passes, tiny_llama_dir, dtype, False)[0]
    each, expected, same = ask(steps_of_three_passes, tiny_llama_dir, dtype, True)[0]
    messages = each[0][0]
    assert messages > 2 and each == [[messages] * 3] * 2 and counts == [[0, 0, messages]] * 2
    assert norms == pytest.approx(expected, rel=1e-6)
    for name, weight in same.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6 if dtype == torch.float32 else 1e-3, rtol=0)


def test_shards_of_a_bfloat16_model_are_float32_masters(ask: Ask, tiny_llama_dir: Path) -> None:
    """Rounded, they are the weights; the steps are one device's to what bfloat16 products can hold."""
    module, optimizer, _ = one_device(tiny_llama_dir, torch.bfloat16)
    _, weights, state = ask(steps_and_state, tiny_llama_dir, torch.bfloat16)[0]
    names = [name for name, _ in module.named_parameters()]
    masters = dict(zip(names, state["masters"], strict=True))
    assert all(master.dtype == torch.float32 for master in masters.values())
    assert all(weights[name].equal(masters[name].bfloat16()) for name in names)
    assert not all(masters[name].equal(weights[name].float()) for name in names)
    for name, expected in zip(names, optimizer.masters, strict=True):
        torch.testing.assert_close(masters[name], expected.detach(), atol=2e-2, rtol=0)


def go_on_from(backend: Fsdp2Backend, folder: Path, files: Path, state: Any) -> tuple[list[float], Any]:
    model, optimizer = placed(backend, files)
    optimizer.load_state_dict(state)
    return take_steps(backend, model, optimizer, RATES[1:]), backend.full_state_dict(model.module)


def test_a_state_of_one_device_continues_on_shards(ask: Ask, tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = model_in(tiny_llama_dir, torch.float32)
    optimizer = MasterAdamW(model.module.named_parameters(), CONFIG)
    for rank in range(2):
        objective(model, rank).backward()
    optimizer.step(RATES[0])
    model.module.save_pretrained(tmp_path)
    norms, weights = ask(go_on_from, tiny_llama_dir, tmp_path, optimizer.state_dict())[0]
    module, _, expected = one_device(tiny_llama_dir)
    assert norms == pytest.approx(expected[1:], rel=1e-5)
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weights[name], weight.detach(), atol=1e-5, rtol=1e-5)


def write_and_read_again(backend: Fsdp2Backend, folder: Path, out: Path) -> tuple[Any, Any, bool]:
    model, optimizer = placed(backend, folder, torch.bfloat16)
    take_steps(backend, model, optimizer, RATES)
    shards = backend.sharded_state(model.module, optimizer)
    assert shards
    write_shards(out / "optimizer", shards.optimizer, shards.group)
    write_model_shards(out / "model", shards.model, shards.group)
    backend.group.all_gather("written")  # rank 0 has put the model's files together
    again = read_shards(out / "optimizer", optimizer.allocate)
    own = optimizer.sharded_tensors()
    same = again.keys() == own.keys() and all(again[name].to_local().equal(own[name].to_local()) for name in own)
    return optimizer.state_dict(), backend.full_state_dict(model.module), same


def test_what_the_ranks_write_together_is_the_full_state(ask: Ask, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Read by one process in full, and by each rank into the memory of its shards."""
    (state, weights, same), (_, _, same_on_second) = ask(write_and_read_again, tiny_llama_dir, tmp_path)
    assert same and same_on_second
    read: dict[str, Any] = {"adamw": {"state": {index: {} for index in state["adamw"]["state"]}}, "masters": []}
    insert_tensors(read, read_shards(tmp_path / "optimizer", allocate_full))
    assert len(read["masters"]) == len(state["masters"]) > 0
    assert all(found.equal(master) for found, master in zip(read["masters"], state["masters"], strict=True))
    for index, moments in state["adamw"]["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert read["adamw"]["state"][index][name].equal(moments[name])
    (file,) = (tmp_path / "model").glob("*.safetensors")
    saved = load_file(file)
    assert saved.keys() == weights.keys() and all(saved[name].equal(weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"balancer": "gradnorm"}, "balancer.name: gradnorm compares gradients of a whole layer"),
        ({"model": {"model_name_or_path": "m", "quantization": "8bit"}}, "model.quantization: 8-bit weights"),
        ({"train": {"torch_compile": True}}, "train.torch_compile: compiled layers"),
        ({"adapter": {"train_embeddings": True}}, "adapter.train_embeddings: keeps whole copies"),
    ],
)
def test_options_that_need_a_complete_layer_are_refused(fields: dict[str, Any], problem: str) -> None:
    config = RunConfig.model_validate({"model": "m", "tasks": {"a": "a"}, "output_dir": "o", **fields})
    with pytest.raises(ConfigError, match=problem):
        Fsdp2Backend(BackendConfig(device="cpu")).check(config)


def test_uneven_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = RunConfig.model_validate({"model": "m", "tasks": {"a": "a"}, "output_dir": "o"})
    Fsdp2Backend(BackendConfig(device="cpu", shard_group_size=2)).check(config)
    with pytest.raises(ConfigError, match="3 does not divide the 4 processes"):
        Fsdp2Backend(BackendConfig(device="cpu", shard_group_size=3)).check(config)
