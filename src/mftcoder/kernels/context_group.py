"""Rows shared by a group of ranks: each rank holds a slice of their positions, and attention trades positions for heads.

Goes in: tensors of this rank's slice. Comes out: in front of attention all positions of the rows for a share of the heads, and
behind it this rank's positions for all heads (DeepSpeed-Ulysses, arXiv 2309.14509). Whatever else a decoder does it does to one
position at a time, so it runs on the slice alone. Each exchange is its own transpose: gradients go back the way their values
came, and summed over the ranks of the group they are those of the whole rows. Knows no model and no samples.
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
    """The ranks that run the same rows. Of L positions each has ceil(L / size), the last one filled up with zeros."""

    size: int = 1
    index: int = 0
    ranks: dist.ProcessGroup | None = None
    run: Callable[[str, Callable[[], object]], None] = _unnamed
    """Runs a collective, given its name for messages."""

    def padded(self, values: Tensor) -> Tensor:
        """[B, L] with zeros at the end, so that all slices are of one length. A position 0 is a sample of its own."""
        return F.pad(values, (0, -values.shape[1] % self.size))

    def own(self, values: Tensor) -> Tensor:
        """This rank's slice [B, ceil(L / size)] of values [B, L] that every rank of the group has."""
        return self.padded(values).chunk(self.size, dim=1)[self.index]

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for the model's forward, which attention finds the group by."""
        return {"context_group": self} if self.size > 1 else {}

    def trade(self, *tensors: Tensor) -> list[Tensor]:
        """Each [B, n * size, m, D] -> [B, n, m * size, D], in one message: heads for positions, or positions for heads."""
        parts = [tensor.unflatten(1, (self.size, -1)).transpose(0, 1) for tensor in tensors]  # [size, B, n, m, D]
        flat = [part.flatten(1) for part in parts]
        received = self._exchanged(torch.cat(flat, dim=1)).split([piece.shape[1] for piece in flat], dim=1)
        return [
            piece.view(part.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)
            for piece, part in zip(received, parts, strict=True)
        ]

    def repeated(self, heads: Tensor) -> Tensor:
        """Key or value heads [B, G, l, D], each repeated as often as makes their number a multiple of the group's size."""
        times = self.size // math.gcd(heads.shape[1], self.size)
        return heads if times == 1 else heads.repeat_interleave(times, dim=1)

    def gather(self, values: Tensor) -> Tensor:
        """Each rank's values [T, ...], one after the other [size * T, ...], on every rank."""
        if self.size == 1:
            return values
        return self._exchanged(values.expand(self.size, *values.shape).contiguous()).flatten(0, 1)

    def whole_rows(self, values: Tensor) -> Tensor:
        """The slices [B, l, ...] of all ranks put together [B, l * size, ...]."""
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
        """Part r [size, ...] goes to rank r of the group; what came from rank r is part r."""
        received = torch.empty_like(parts)
        self.run("exchanging slices of rows", lambda: dist.all_to_all_single(received, parts, group=self.ranks))
        return received


ALONE = ContextGroup()
"""The group of a rank that runs its rows whole."""


class _Exchange(torch.autograd.Function):
    """all_to_all with the gradient that it has: all_to_all."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ContextGroup) -> Tensor:
        """[size, ...] -> [size, ...]."""
        ctx.group = group
        return group.all_to_all(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Back where they came from."""
        return ctx.group.all_to_all(grads[0].contiguous()), None
