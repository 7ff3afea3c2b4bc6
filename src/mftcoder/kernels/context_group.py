"""Rows shared by a group of ranks: each rank holds a slice of the positions, and attention exchanges positions for heads.

Before attention, a rank gets all positions of the rows for a part of the heads; after attention, it gets its own positions for all
heads (DeepSpeed-Ulysses, arXiv 2309.14509). All other parts of a decoder treat each position alone, so they run on the slice. The
backward pass of an exchange is the reverse exchange; summed over the ranks of the group, gradients are those of the whole rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def _unnamed(name: str, collective: Callable[[], object]) -> None:
    collective()


@dataclass(frozen=True, eq=False)
class ContextGroup:
    """The ranks that run the same rows. Each has ceil(L / size) of L positions; the last slice is padded with zeros."""

    size: int = 1
    index: int = 0
    ranks: dist.ProcessGroup | None = None
    run: Callable[[str, Callable[[], object]], None] = _unnamed
    """Runs a collective; its name is for messages."""

    def padded(self, values: Tensor) -> Tensor:
        """[B, L] with zeros at the end, so that all slices have one length. Each padded position 0 is a sample of its own."""
        return F.pad(values, (0, -values.shape[1] % self.size))

    def own(self, values: Tensor) -> Tensor:
        """This rank's slice [B, ceil(L / size)] of values [B, L] that every rank of the group has."""
        return self.padded(values).chunk(self.size, dim=1)[self.index]

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the model's forward that pass the group to attention."""
        return {"context_group": self} if self.size > 1 else {}

    def exchange(self, *tensors: Tensor) -> list[Tensor]:
        """Each [B, n * size, m, D] -> [B, n, m * size, D], in one message: heads for positions, or positions for heads."""
        parts = [tensor.unflatten(1, (self.size, -1)).transpose(0, 1) for tensor in tensors]  # [size, B, n, m, D]
        flat = [part.flatten(1) for part in parts]
        received = self._exchanged(torch.cat(flat, dim=1)).split([piece.shape[1] for piece in flat], dim=1)
        return [
            piece.view(part.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)
            for piece, part in zip(received, parts, strict=True)
        ]

    def repeated(self, heads: Tensor) -> Tensor:
        """Key or value heads [B, G, l, D], repeated until their number is a multiple of the group's size."""
        times = self.size // math.gcd(heads.shape[1], self.size)
        return heads if times == 1 else heads.repeat_interleave(times, dim=1)

    def gather(self, values: Tensor) -> Tensor:
        """The values [T, ...] of all ranks, concatenated [size * T, ...], on every rank."""
        if self.size == 1:
            return values
        return self._exchanged(values.expand(self.size, *values.shape).contiguous()).flatten(0, 1)

    def whole_rows(self, values: Tensor) -> Tensor:
        """The slices [B, l, ...] of all ranks, joined to whole rows [B, l * size, ...]."""
        if self.size == 1:
            return values
        return self.gather(values).unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over the group, without gradient."""
        total = values.clone()
        if self.size > 1:
            self.run("summing over slices of rows", lambda: dist.all_reduce(total, group=self.ranks))
        return total

    def _exchanged(self, parts: Tensor) -> Tensor:
        exchanged: Tensor = _Exchange.apply(parts, self)
        return exchanged

    def all_to_all(self, parts: Tensor) -> Tensor:
        """Send part r [size, ...] to rank r of the group; part r of the result comes from rank r."""
        received = torch.empty_like(parts)
        self.run("exchanging slices of rows", lambda: dist.all_to_all_single(received, parts, group=self.ranks))
        return received


ALONE = ContextGroup()
"""The group of a rank that runs whole rows."""


class _Exchange(torch.autograd.Function):
    """all_to_all with its gradient, which is all_to_all, too."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ContextGroup) -> Tensor:
        """[size, ...] -> [size, ...]."""
        ctx.group = group
        return group.all_to_all(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Send the gradients back to the ranks of their values."""
        return ctx.group.all_to_all(grads[0].contiguous()), None
