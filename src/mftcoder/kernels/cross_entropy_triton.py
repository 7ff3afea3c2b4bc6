"""The weighted cross entropy of a chunk of logits on a GPU, in place and in two passes over memory.

The plain-torch twin is `slope_in_torch` in cross_entropy.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def slope_in_place(logits: Tensor, targets: Tensor, coefficients: Tensor) -> Tensor:
    """Losses float32 [N]; `logits` [N, V] are overwritten with their gradient `coefficient * (softmax - onehot)`."""
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        _slope[(rows,)](logits, targets, coefficients, losses, logits.stride(0), vocabulary, block=BLOCK, num_warps=16)
    return losses


@triton.jit
def _slope(logits, targets, coefficients, losses, stride, vocabulary: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row: online log-sum-exp, then the gradient over the same memory."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    target = tl.load(targets + row)
    peak = float("-inf")
    total = 0.0
    picked = 0.0
    for start in range(0, vocabulary, block):
        column = start + tl.arange(0, block)
        x = tl.load(base + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(x))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(x - higher))
        # Read with its block, because another warp could overwrite it before a separate load.
        picked += tl.sum(tl.where(column == target, x, 0.0))
        peak = higher
    log_sum = peak + tl.log(total)
    tl.store(losses + row, log_sum - picked)
    coefficient = tl.load(coefficients + row)
    for start in range(0, vocabulary, block):
        column = start + tl.arange(0, block)
        inside = column < vocabulary
        x = tl.load(base + column, mask=inside, other=0.0).to(tl.float32)
        slope = (tl.exp(x - log_sum) - tl.where(column == target, 1.0, 0.0)) * coefficient
        tl.store(base + column, slope.to(logits.dtype.element_ty), mask=inside)
