"""Rotary embeddings that choose their frequencies by length: in a packed row each sample gets those that it has alone.

transformers gives a whole batch the frequencies of its longest position where the type is `longrope` or `dynamic`, so one long
sample (or padding) would change every sample of its row. Goes in: a model, and where the samples of the next rows begin. Comes
out: the model's own cosines and sines, computed for the samples of each length apart. Other types need nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mftcoder.kernels.attention import SampleLayout

BY_LENGTH = {"longrope", "dynamic"}


class RotaryBySample:
    """Stands in front of one rotary embedding. `layout` says where the samples of the rows that it is shown begin."""

    def __init__(self, module: Any):
        self._module = module
        self._own: Callable[..., Any] = module.forward
        self.layout: SampleLayout | None = None
        module.forward = self.forward

    @staticmethod
    def of(model: nn.Module) -> "list[RotaryBySample]":
        """Those of a model whose frequencies depend on the length, each made once; none for most."""
        found = [module for module in model.modules() if set(_types(module).values()) & BY_LENGTH]
        return [_in_front_of(module) or RotaryBySample(module) for module in found]

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """What the embedding itself gives, cosines and sines [B, L, D], each sample as if alone."""
        lengths = [length for row in self.layout.lengths for length in row] if self.layout else []
        if sum(lengths) != position_ids.numel():
            raise ValueError(f"{type(self._module).__name__} was not told where the samples of its rows begin")
        groups = self._groups(lengths, layer_type)
        if len(groups) == 1:
            return self._alone(x, position_ids, layer_type)
        flat = position_ids.reshape(1, -1)
        places = [_to_device(torch.from_numpy(group), flat.device) for group in groups]
        parts = [self._alone(x, flat[:, place], layer_type) for place in places]
        if isinstance(parts[0], Tensor):
            return _joined(parts, places, position_ids.shape)
        return tuple(_joined(part, places, position_ids.shape) for part in zip(*parts, strict=True))

    def _groups(self, lengths: list[int], layer_type: str | None) -> list[np.ndarray]:
        """Places in the flat rows of samples that share frequencies: the short ones, then those of each longer length."""
        threshold = _threshold(self._module, layer_type)
        of_sample = [length if length > threshold else 0 for length in lengths]
        of_position = np.repeat(of_sample, lengths)
        return [np.flatnonzero(of_position == key) for key in sorted(set(of_sample))]

    def _alone(self, x: Tensor, position_ids: Tensor, layer_type: str | None) -> Any:
        """The embedding as if these were the first positions that it sees: `dynamic` keeps what it has grown to."""
        module, which = self._module, () if layer_type is None else (layer_type,)
        if _types(module)[layer_type] == "dynamic":
            prefix = "" if layer_type is None else f"{layer_type}_"
            original = getattr(module, f"{prefix}original_inv_freq").to(x.device)
            module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        return self._own(x, position_ids, *which)


def _in_front_of(module: Any) -> RotaryBySample | None:
    already = getattr(module.forward, "__self__", None)
    return already if isinstance(already, RotaryBySample) else None


def _types(module: Any) -> dict[str | None, str]:
    """Kinds of rotary embedding of a module by the kind of layers, None if they are all alike; empty for other modules."""
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        return dict(rope_type)
    return {} if rope_type is None else {None: rope_type}


def _threshold(module: Any, layer_type: str | None) -> int:
    """Up to this many positions a sample has the usual frequencies."""
    kind = _types(module)[layer_type]
    if kind == "longrope":
        parameters = module.config.rope_parameters
        return int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])
    return int(module.original_max_seq_len) if kind == "dynamic" else torch.iinfo(torch.int64).max


def _joined(parts: Any, places: list[Tensor], shape: torch.Size) -> Tensor:
    """[1, n, D] of each group, put back where they belong: [B, L, D]."""
    first = parts[0]
    whole = first.new_empty(1, shape.numel(), *first.shape[2:])
    for part, place in zip(parts, places, strict=True):
        whole.index_copy_(1, place, part)
    return whole.view(*shape, *first.shape[2:])


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
