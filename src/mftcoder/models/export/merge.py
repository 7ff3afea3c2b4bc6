"""Merge a LoRA adapter into its base: file by file, computed in float32, written in the requested dtype.

The logits equal the adapter model's. At most one output file is in memory. `folder.py` writes config and tokenizer.

    W' = W + s B A                                   s = alpha / r, or alpha / sqrt(r) for rsLoRA   (arXiv 2106.09685, 2312.03732)
    W' = m (W + s B A) / |W + s B A|                 DoRA, the norm taken over each output's inputs  (arXiv 2402.09353)
"""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json
from mftcoder.models.files.weights import SHARD_BYTES, StoredTensor, all_tensors, weight_files, write_weight_files
from mftcoder.models.layers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Update:
    """What the adapter adds to one weight matrix [out, in]."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float
    magnitude: Tensor | None  # [out] of DoRA
    transposed: bool  # the base keeps the matrix as [in, out] (GPT-2's Conv1D)

    def to(self, device: torch.device) -> "Update":
        magnitude = None if self.magnitude is None else self.magnitude.to(device)
        return replace(self, a=self.a.to(device), b=self.b.to(device), magnitude=magnitude)

    def merged(self, weight: Tensor) -> Tensor:
        """The new weight in float32, in the base's orientation."""
        matrix = weight.float().T if self.transposed else weight.float()
        matrix = matrix + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is not None:
            matrix = matrix * (self.magnitude.float() / matrix.norm(dim=1))[:, None]
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True)
class Replacement:
    """A weight that trained whole beside the LoRA weights."""

    weight: Tensor
    is_tied: bool = False
    """An output head that shares the embedding's weight; the base may not store it."""

    def to(self, device: torch.device) -> "Replacement":
        return replace(self, weight=self.weight.to(device))

    def merged(self, weight: Tensor) -> Tensor:
        """The new weight in float32. ModelError if the old one has another shape."""
        if weight.shape != self.weight.shape:
            raise ModelError(
                f"the adapter's embedding has the shape {tuple(self.weight.shape)}, the base's {tuple(weight.shape)}; the adapter belongs to "
                "another base model"
            )
        return self.weight.float()


Updates = dict[str, Update | Replacement]
Change = Callable[[str, Tensor], Tensor]
"""Changes a weight, given its name, before an update is added."""


def unchanged(name: str, weight: Tensor) -> Tensor:
    return weight


def merge(
    base: Path,
    adapter: Path | None,
    out: Path,
    *,
    dtype: torch.dtype,
    change: Change = unchanged,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the merged weights of `base` and `adapter` (None: of the base alone) into `out`, cast to `dtype`.

    The safetensors files have at most `shard_bytes`. ModelError if the base lacks a weight of the adapter.
    """
    sources = weight_sources(base)
    updates = match(read_updates(adapter), sources, base=str(base), adapter=adapter) if adapter else {}
    merged = ((name, _merged(tensor, updates, change, dtype)) for name, tensor in sources.items())
    write_weight_files(merged, out, shard_bytes=shard_bytes)


def read_updates(adapter: Path) -> Updates:
    """The updates of a peft folder, by module path (`model.layers.0.self_attn.q_proj`)."""
    config = read_json(adapter / ADAPTER_CONFIG)
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    used = {
        f"{module}.{part}" for module in modules for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    }
    saved = _saved_modules(set(tensors) - used, tensors, config)
    foreign = sorted(set(tensors) - used - {f"{module}.weight" for module in saved})
    if foreign or not modules:
        raise ModelError(
            f"{adapter}: {foreign[0] if foreign else 'holds no LoRA weight'}: cannot be merged weight by weight; merge it with "
            "peft's merge_and_unload"
        )
    return {module: _update(module, tensors, config) for module in modules} | saved


def _saved_modules(others: set[str], tensors: dict[str, Tensor], config: dict[str, Any]) -> Updates:
    """The weights that trained whole, among the `others` than LoRA weights. A head with the embedding's weight is tied to it."""
    names = tuple(config.get("modules_to_save") or ())
    weights = {name.removesuffix(".weight"): tensors[name] for name in sorted(others) if name.endswith(".weight")}
    saved: Updates = {
        module: Replacement(weight)
        for module, weight in weights.items()
        if any(module == one or module.endswith(f".{one}") for one in names)
    }
    if config.get("ensure_weight_tying"):
        for module in weights.keys() - saved.keys():
            if any(torch.equal(weights[module], weights[one]) for one in saved):
                saved[module] = Replacement(weights[module], is_tied=True)
    return saved


def _update(module: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Update:
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    rank = a.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Update(a, b, scale, tensors.get(f"{module}.lora_magnitude_vector"), bool(config.get("fan_in_fan_out")))


def weight_sources(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's safetensors files by name, in the files' order; empty if there is none."""
    try:
        files = weight_files(folder, allow_pickled=False)
    except ModelError:
        return {}
    return all_tensors(files)


def match(updates: Updates, names: Container[str], *, base: str, adapter: Path) -> Updates:
    """Updates by the base's tensor names. A checkpoint may omit the outermost module (`h.0` for `transformer.h.0`)."""
    matched: Updates = {}
    for module, update in updates.items():
        candidates = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        name = next((candidate for candidate in candidates if candidate in names), None)
        if name is None and isinstance(update, Replacement) and update.is_tied:
            continue
        if name is None:
            raise ModelError(
                f"{adapter}: {module}: {base} has no weight of that name; the adapter belongs to another base model"
            )
        matched[name] = update
    return matched


def _merged(stored: StoredTensor, updates: Updates, change: Change, dtype: torch.dtype) -> Tensor:
    weight = change(stored.name, stored.read())
    weight = updates[stored.name].merged(weight) if stored.name in updates else weight
    return weight.to(dtype).contiguous() if weight.is_floating_point() else weight.contiguous()
