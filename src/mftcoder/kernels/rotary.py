"""Rotary embeddings whose frequencies depend on the length: in a packed row, each sample gets the frequencies that it has alone.

For the types `longrope` and `dynamic`, transformers gives a whole batch the frequencies of its longest position, so one long sample
(or padding) would change every sample of its row. Here the model's own cosines and sines are computed separately for the samples of
each length. Other types need no change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mftcoder.kernels.attention import SampleLayout

BY_LENGTH = {"longrope", "dynamic"}


class RotaryBySample:
    """Wraps one rotary embedding. `layout` must hold the sample lengths of the rows of the next forward pass."""

    def __init__(self, module: Any):
        self._module = module
        self._own: Callable[..., Any] = module.forward
        self.layout: SampleLayout | None = None
        module.forward = self.forward

    @staticmethod
    def of(model: nn.Module) -> "list[RotaryBySample]":
        """Wrap each embedding of a model whose frequencies depend on the length, once; most models have none."""
        found = [module for module in model.modules() if set(_types(module).values()) & BY_LENGTH]
        return [_wrapper_of(module) or RotaryBySample(module) for module in found]

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """The embedding's cosines and sines [B, L, D], for each sample as if it were alone."""
        lengths = [length for row in self.layout.lengths for length in row] if self.layout else []
        if sum(lengths) != position_ids.numel():
            raise ValueError(f"{type(self._module).__name__} did not get the sample lengths of its rows")
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
        """Places in the flat rows of samples with the same frequencies: the short ones, then those of each longer length."""
        threshold = _threshold(self._module, layer_type)
        of_sample = [length if length > threshold else 0 for length in lengths]
        of_position = np.repeat(of_sample, lengths)
        return [np.flatnonzero(of_position == key) for key in sorted(set(of_sample))]

    def _alone(self, x: Tensor, position_ids: Tensor, layer_type: str | None) -> Any:
        """The embedding of these positions, with `dynamic` reset: it keeps the frequencies of the longest row it has seen."""
        module, which = self._module, () if layer_type is None else (layer_type,)
        if _types(module)[layer_type] == "dynamic":
            prefix = "" if layer_type is None else f"{layer_type}_"
            original = getattr(module, f"{prefix}original_inv_freq").to(x.device)
            module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        return self._own(x, position_ids, *which)


def _wrapper_of(module: Any) -> RotaryBySample | None:
    already = getattr(module.forward, "__self__", None)
    return already if isinstance(already, RotaryBySample) else None


def _types(module: Any) -> dict[str | None, str]:
    """The types of a rotary module by kind of layer (the key is None if there is only one); empty for other modules."""
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        return dict(rope_type)
    return {} if rope_type is None else {None: rope_type}


def _threshold(module: Any, layer_type: str | None) -> int:
    """The largest length of a sample with the usual frequencies."""
    kind = _types(module)[layer_type]
    if kind == "longrope":
        parameters = module.config.rope_parameters
        return int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])
    return int(module.original_max_seq_len) if kind == "dynamic" else torch.iinfo(torch.int64).max


def _joined(parts: Any, places: list[Tensor], shape: torch.Size) -> Tensor:
    """The parts [1, n, D] of the groups, put back in their places: [B, L, D]."""
    first = parts[0]
    whole = first.new_empty(1, shape.numel(), *first.shape[2:])
    for part, place in zip(parts, places, strict=True):
        whole.index_copy_(1, place, part)
    return whole.view(*shape, *first.shape[2:])


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
