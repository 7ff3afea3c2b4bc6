"""Sharded tensors on disk, through torch.distributed.checkpoint: each rank writes its shards, and any number of ranks can read them.

No rank ever holds a full tensor. The files of a model's weights are merged one by one, so that transformers can read the folder.
Whole checkpoints are left to checkpoints/checkpoint.py.
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

Allocate = Callable[[str, torch.Size, torch.dtype], Tensor]
"""Allocates the memory for a tensor of this name, full size and dtype: a full tensor, or a DTensor with this rank's shard."""

FILE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class ShardedState:
    """The state of a run that is sharded over its ranks."""

    model: dict[str, Tensor]  # weights of a fully trained model; empty for an adapter, which is small enough to gather
    optimizer: dict[str, Tensor]  # "state.<index>.<name>" and "masters.<index>"
    rest: dict[str, Any]  # the optimizer's state without those, in the layout of MasterAdamW
    group: Any  # a process group that training does not use


def allocate_full(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory for the full tensor."""
    return torch.empty(size, dtype=dtype)


def trained_weights(module: Any) -> dict[str, Tensor]:
    """The weights of a module in a checkpoint, by name: the trained ones, and if all are trained, also the saved buffers."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    if any(not weight.requires_grad for weight in module.parameters()):
        return trained
    kept = module.state_dict().keys()
    return trained | {name: buffer for name, buffer in module.named_buffers() if name in kept}


def write_shards(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write this rank's shards into `folder`. All ranks call it. CheckpointException on every rank if one of them fails."""
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=group)


def write_model_shards(folder: Path, weights: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write this rank's shards of a model. Rank 0 then merges the ranks' files into safetensors files of a few GiB each."""
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


def read_shards(folder: Path, allocate: Allocate) -> dict[str, Tensor]:
    """The tensors that `write_shards` wrote, by name, in memory from `allocate`. Each rank reads only what it allocates."""
    reader = dcp.FileSystemReader(folder)
    tensors = {
        name: allocate(name, about.size, about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if isinstance(about, dcp.metadata.TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # each rank reads on its own, on purpose
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def insert_tensors(state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Insert tensors with the names of `ShardedState.optimizer` into the optimizer's state, in place."""
    masters = {}
    for path, tensor in tensors.items():
        kind, index, *name = path.split(".")
        if kind == "masters":
            masters[int(index)] = tensor
        else:
            state["adamw"]["state"][int(index)][name[0]] = tensor
    state["masters"] = [masters[index] for index in sorted(masters)]
