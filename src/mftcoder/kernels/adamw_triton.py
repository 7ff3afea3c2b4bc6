"""AdamW on a GPU: one launch for all weights. The plain-torch twin is `adamw_in_torch` in adamw.py.

A table of addresses assigns each program a piece of one weight. Gradients have new addresses in each step, so the host sends their
column again: a few kilobytes, from pinned memory, without waiting.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mftcoder.kernels.adamw import AdamWRule, AdamWTensors, bias_corrections

BLOCK = 2048
WARPS = 8
ALIGNMENT = 16  # bytes: addresses that are multiples of it are read in whole vectors
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
_Key = tuple[torch.dtype, torch.dtype]  # of a master and its weight: one launch each


class OnePassAdamW:
    """The fixed part of the table, and the launch."""

    def __init__(self, tensors: Sequence[AdamWTensors], rule: AdamWRule):
        self._tensors, self._rule = list(tensors), rule
        device = tensors[0].weight.device
        types = [(one.master.dtype, one.weight.dtype) for one in tensors]
        self._members = {key: [index for index, own in enumerate(types) if own == key] for key in dict.fromkeys(types)}
        self._pieces = {key: _pieces(tensors, members, device) for key, members in self._members.items()}
        self._fixed = torch.tensor(
            [
                [0, one.master.data_ptr(), one.first_moment.data_ptr(), one.second_moment.data_ptr(),
                 one.weight.data_ptr(), one.weight.numel()]
                for one in tensors
            ],
            dtype=torch.int64,
        )  # fmt: skip
        self._decay = torch.tensor([one.decay for one in tensors], dtype=torch.float32, device=device)

    def update(
        self,
        gradients: Sequence[Tensor | None],
        steps: Tensor,
        *,
        rate: float,
        scale: Tensor,
        skip: Tensor,
        seed: int,
    ) -> None:
        """One step of every weight that has a gradient, times `scale` (clipping), unless `skip` is not 0.

        `steps` float32 [T] counts each weight's steps; `scale` and `skip` are scalars on the device; `seed` changes each step.
        """
        given, gradient_types = self._in_one_type(gradients)
        table = self._fixed.clone()
        table[:, 0] = torch.tensor([0 if g is None else g.data_ptr() for g in given])
        aligned = bool((table[:, :5] % ALIGNMENT == 0).all())
        has_gradient = table[:, 0] != 0
        device = steps.device
        if device.type == "cuda":
            table = table.pin_memory().to(device, non_blocking=True)
            has_gradient = has_gradient.pin_memory().to(device, non_blocking=True)
        corrections = bias_corrections(steps, self._rule)
        rule = self._rule
        for (master_type, weight_type), gradient_type in gradient_types.items():
            stochastic = rule.stochastic_rounding and weight_type == torch.bfloat16
            for owners, starts, whole in self._pieces[master_type, weight_type]:
                _adamw[(len(owners),)](
                    table, owners, starts, self._decay, *corrections, scale, skip,
                    rate, rule.beta1, rule.beta2, rule.epsilon, seed,
                    gradient_type=_TYPES[gradient_type], master_type=_TYPES[master_type], weight_type=_TYPES[weight_type],
                    has_copy=master_type != weight_type, whole=whole, aligned=aligned, stochastic=stochastic,
                    block=BLOCK, num_warps=WARPS,
                )  # fmt: skip
        steps.add_(has_gradient * (skip == 0))

    def _in_one_type(self, gradients: Sequence[Tensor | None]) -> tuple[list[Tensor | None], dict[_Key, torch.dtype]]:
        """Gradients, contiguous and of one dtype a launch (float32 where they differ), and that dtype."""
        given: list[Tensor | None] = [None] * len(gradients)
        types: dict[_Key, torch.dtype] = {}
        for key, members in self._members.items():
            found = {g.dtype for g in (gradients[index] for index in members) if g is not None}
            if not found:
                continue
            types[key] = found.pop() if len(found) == 1 else torch.float32
            for index in members:
                one = gradients[index]
                given[index] = None if one is None else one.to(types[key]).contiguous()
        return given, types


def _pieces(
    tensors: Sequence[AdamWTensors], members: list[int], device: torch.device
) -> list[tuple[Tensor, Tensor, bool]]:
    """(owner, first element, whether it is a whole block) of each piece of these weights; incomplete blocks are separate."""
    sizes = torch.tensor([tensors[index].weight.numel() for index in members])
    owners = torch.tensor(members)
    whole, rest = sizes // BLOCK, sizes % BLOCK > 0
    numbers = torch.arange(int(whole.sum())) - torch.repeat_interleave(whole.cumsum(0) - whole, whole)
    pieces = [
        (torch.repeat_interleave(owners, whole), numbers * BLOCK, True),
        (owners[rest], whole[rest] * BLOCK, False),
    ]
    return [(own.to(device, torch.int32), start.to(device), full) for own, start, full in pieces if len(own)]


@triton.jit
def _hashed(x):  # type: ignore[no-untyped-def]
    """`hashed` of adamw.py, on uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _adamw(  # type: ignore[no-untyped-def]
    table, owners, starts, decays, corrections1, corrections2, scale, skip, rate, beta1, beta2, epsilon, seed,
    gradient_type: tl.constexpr, master_type: tl.constexpr, weight_type: tl.constexpr,
    has_copy: tl.constexpr, whole: tl.constexpr, aligned: tl.constexpr, stochastic: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program per piece of `block` elements of one weight."""
    owner = tl.load(owners + tl.program_id(0))
    row = table + owner.to(tl.int64) * 6
    if tl.load(row) == 0 or tl.load(skip) != 0:
        return
    gradient = tl.load(row).to(tl.pointer_type(gradient_type))
    master = tl.load(row + 1).to(tl.pointer_type(master_type))
    first_moment = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    second_moment = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    if aligned:
        gradient = tl.multiple_of(gradient, 16)
        master = tl.multiple_of(master, 16)
        first_moment = tl.multiple_of(first_moment, 16)
        second_moment = tl.multiple_of(second_moment, 16)
    place = tl.multiple_of(tl.load(starts + tl.program_id(0)), block) + tl.arange(0, block)
    inside = None if whole else place < tl.load(row + 5)  # with a mask, vectors would be read element by element
    g = tl.load(gradient + place, mask=inside).to(tl.float32) * tl.load(scale)
    p = tl.load(master + place, mask=inside).to(tl.float32)
    m = tl.load(first_moment + place, mask=inside)
    v = tl.load(second_moment + place, mask=inside)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    denominator = tl.sqrt(v) / tl.load(corrections2 + owner) + epsilon
    p = p * (1.0 - rate * tl.load(decays + owner)) - rate / tl.load(corrections1 + owner) * m / denominator
    if stochastic:
        key = _hashed((seed * 4096 + owner).to(tl.uint32))
        noise = _hashed(place.to(tl.uint32) + key) & 0xFFFF
        rounded = ((p.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
        p = tl.where((p - p) == 0.0, rounded, p)
    tl.store(first_moment + place, m, mask=inside)
    tl.store(second_moment + place, v, mask=inside)
    tl.store(master + place, p.to(master_type), mask=inside)
    if has_copy:
        weight = tl.load(row + 4).to(tl.pointer_type(weight_type))
        if aligned:
            weight = tl.multiple_of(weight, 16)
        tl.store(weight + place, p.to(weight_type), mask=inside)
