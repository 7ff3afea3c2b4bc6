"""AdamW over many weights in one pass: each gradient, master, moment and weight is read once and written once.

torch's fused AdamW updates tensors of one dtype. With bfloat16 weights over float32 masters, it needs a float32 copy of each gradient,
a pass for clipping and a pass that rounds the weights: 52 bytes of traffic per parameter, where 30 suffice. On a GPU, one launch
updates all weights (`adamw_triton`); the plain-torch twin below defines the result. Both decide on the device whether a step is
skipped, so the host never waits. Decoupled weight decay: arXiv 1711.05101.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamWRule:
    """What is the same for all weights and steps."""

    beta1: float
    beta2: float
    epsilon: float
    stochastic_rounding: bool = (
        False  # a bfloat16 weight is its own master; rounding up or down is drawn, right on average
    )


@dataclass(frozen=True)
class AdamWTensors:
    """One trained weight and its state; all of one shape, on one device."""

    weight: Tensor  # what the model computes with: the master itself, or rounded from it
    master: Tensor  # float32; with stochastic rounding the weight itself
    first_moment: Tensor  # float32
    second_moment: Tensor  # float32
    decay: float


def bias_corrections(steps: Tensor, rule: AdamWRule) -> tuple[Tensor, Tensor]:
    """`(1 - beta1^t, sqrt(1 - beta2^t))` float32 [T], for each weight's own number of steps before this one [T]."""
    t = steps.double() + 1.0
    return (1.0 - rule.beta1**t).float(), (1.0 - rule.beta2**t).sqrt().float()


def adamw_in_torch(
    tensors: Sequence[AdamWTensors],
    gradients: Sequence[Tensor | None],
    steps: Tensor,
    rule: AdamWRule,
    *,
    rate: float,
    scale: Tensor,
    skip: Tensor,
    seed: int,
) -> None:
    """The plain twin of `OnePassAdamW.update`: same arguments, same result but for rounding of float32."""
    correction1, correction2 = bias_corrections(steps, rule)
    keep = skip == 0
    for index, (one, gradient) in enumerate(zip(tensors, gradients, strict=True)):
        if gradient is None:
            continue
        g = gradient.float() * scale
        first = rule.beta1 * one.first_moment + (1.0 - rule.beta1) * g
        second = rule.beta2 * one.second_moment + (1.0 - rule.beta2) * g * g
        updated = one.master.float() * (1.0 - rate * one.decay)
        updated = updated - rate / correction1[index] * first / (second.sqrt() / correction2[index] + rule.epsilon)
        if rule.stochastic_rounding and one.weight.dtype == torch.bfloat16:
            updated = stochastically_rounded(updated, seed, index)
        one.first_moment.copy_(torch.where(keep, first, one.first_moment))
        one.second_moment.copy_(torch.where(keep, second, one.second_moment))
        one.master.copy_(torch.where(keep, updated.to(one.master.dtype), one.master))
        if one.weight is not one.master:
            one.weight.copy_(one.master)
        steps[index] += keep.to(steps.dtype)


def stochastically_rounded(values: Tensor, seed: int, index: int) -> Tensor:
    """float32 values rounded to neighbours in bfloat16 (as float32), up with the probability of what is cut off."""
    position = torch.arange(values.numel(), device=values.device, dtype=torch.int64).view(values.shape)
    noise = hashed(position + hashed(torch.tensor(seed * 4096 + index))) & 0xFFFF
    bits = values.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = ((bits + noise) & 0xFFFF0000).to(torch.uint32).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values)


def hashed(x: Tensor) -> Tensor:
    """32 well mixed bits of an integer, in int64 (Wellons' lowbias32, nullprogram.com/blog/2018/07/31)."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)
