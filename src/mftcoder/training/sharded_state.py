"""Tensors written by the ranks that hold a share of each, and read by any number of ranks: torch.distributed.checkpoint.

Goes in: tensors by name, DTensors where they lie in shares. Comes out: files that each rank wrote for itself, without one of them
ever holding the whole; on reading, each rank gets what it has room for. A model's weights are put together file by file, so that
its folder is one that transformers reads. Knows nothing of steps and of whole checkpoints: `checkpoint.py` does.
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

Room = Callable[[str, torch.Size, torch.dtype], Tensor]
"""Where the tensor of this name, whole size and format is read to: a whole one, or a DTensor with this rank's share of it."""

FILE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Shares:
    """What the ranks hold together of a run's state."""

    model: dict[str, Tensor]  # weights of a fully trained model; empty for an adapter, which is small enough to gather
    optimizer: dict[str, Tensor]  # "state.<index>.<name>" and "masters.<index>"
    rest: dict[str, Any]  # the optimizer's state without those, in the layout of MasterAdamW
    group: Any  # the ranks, with connections that training does not use


def whole_tensor(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Room for all of it."""
    return torch.empty(size, dtype=dtype)


def trained_weights(module: Any) -> dict[str, Tensor]:
    """What a checkpoint holds of a module, by name: what trains and, where that is everything, the buffers that are saved with it."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    if any(not weight.requires_grad for weight in module.parameters()):
        return trained
    kept = module.state_dict().keys()
    return trained | {name: buffer for name, buffer in module.named_buffers() if name in kept}


def write_shares(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write this rank's shares into `folder`; all ranks call it. CheckpointException on every rank if one of them fails."""
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=group)


def write_model_shares(folder: Path, weights: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write this rank's shares of a model; rank 0 then puts the ranks' files together to safetensors files of a few GiB each."""
    before = accumulate((weight.nbytes for weight in weights.values()), initial=0)
    files = {name: 1 + start // FILE_BYTES for name, start in zip(weights, before, strict=False)}
    number = {file: index for index, file in enumerate(sorted(set(files.values())), start=1)}
    writer = dcp.HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping={name: number[file] for name, file in files.items()},
        save_distributed=True,
        enable_consolidation=True,
        thread_count_consolidation=4,
    )
    dcp.save(weights, storage_writer=writer, process_group=group)
    if dist.get_rank(group) == 0:
        shutil.rmtree(folder / "sharded")


def read_shares(folder: Path, room: Room) -> dict[str, Tensor]:
    """What `write_shares` wrote, by name, each in its room. A rank reads for itself, and only what it has room for."""
    reader = dcp.FileSystemReader(folder)
    tensors = {
        name: room(name, about.size, about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if isinstance(about, dcp.metadata.TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # this rank reads alone, and means to
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def put_shares_in(state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put tensors named as in `Shares.optimizer` back into the optimizer's state, in place."""
    masters = {}
    for path, tensor in tensors.items():
        kind, index, *name = path.split(".")
        if kind == "masters":
            masters[int(index)] = tensor
        else:
            state["adamw"]["state"][int(index)][name[0]] = tensor
    state["masters"] = [masters[index] for index in sorted(masters)]
