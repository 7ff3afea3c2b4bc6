"""Weighted cross entropy of the output layer, in chunks, so that the logits of a long row are never in memory at once.

The tokens of a step are counted before its first forward pass, so each token's coefficient is known and the gradients are computed in
the forward pass. That saves one product with the head, compared with recomputation. Under `no_grad` (validation, the first pass
of a focal loss) only the losses are computed.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mftcoder.kernels.limits import lack_of_triton

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}


def weighted_cross_entropy(
    hidden: Tensor, head: nn.Module, targets: Tensor, coefficients: Tensor, *, softcap: float | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`(sum_i coefficients_i * loss_i, losses [N])`; hidden [N, H], targets and coefficients [N]; losses are detached.

    `logits = softcap * tanh(scale * head(hidden) / softcap)`, without the tanh if softcap is None. A plain linear head takes
    the fused path, any other module (an adapter on the head, a quantized head) the checkpointed one.
    """
    if type(head) is nn.Linear and head.bias is None and softcap is None and scale == 1.0:
        if torch.is_grad_enabled():
            return _FusedLinearCrossEntropy.apply(hidden, head.weight, targets, coefficients)
        token_losses = _plain_losses(hidden, head.weight, targets)
        return (token_losses * coefficients).sum(), token_losses
    losses = [
        checkpoint(_chunk_losses, hidden[part], head, targets[part], softcap, scale, use_reentrant=False)
        for part in _chunks(hidden.shape[0], _vocabulary(head), hidden.device)
    ]
    token_losses = torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)
    return (token_losses * coefficients).sum(), token_losses.detach()


def _plain_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Losses [N], with one product per chunk and no gradients."""
    losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    for part in _chunks(hidden.shape[0], weight.shape[0], hidden.device):
        logits = hidden[part] @ weight.T
        losses[part] = nn.functional.cross_entropy(logits.float(), targets[part], reduction="none")
    return losses


def _chunk_losses(hidden: Tensor, head: nn.Module, targets: Tensor, softcap: float | None, scale: float) -> Tensor:
    logits = head(hidden).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def _vocabulary(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    if type(head) is nn.Linear:
        return weight.shape[0]  # peft's copy of a tied head has its out_features and in_features exchanged
    return int(getattr(head, "out_features", weight.shape[0]))


def _chunks(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Slices of rows whose float32 logits fit in CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _losses_and_slope(logits: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [N] and coefficient-weighted gradient of the logits [N, V] in their dtype; may reuse the logits' memory."""
    if logits.is_cuda and lack_of_triton() is None:
        from mftcoder.kernels.cross_entropy_triton import slope_in_place

        return slope_in_place(logits, targets, coefficients), logits
    return slope_in_torch(logits, targets, coefficients)


def slope_in_torch(logits: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The plain twin of the GPU kernel: d loss_i / d logits_i = softmax(logits_i) - onehot(target_i), in float32."""
    slope = logits.float()
    log_sum = torch.logsumexp(slope, dim=-1)
    losses = log_sum - slope.gather(1, targets[:, None]).squeeze(1)
    slope = slope.sub_(log_sum[:, None]).exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    return losses, slope.mul_(coefficients[:, None]).to(logits.dtype)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden [N, H], weight [V, H] -> scalar, [N]."""
        with_hidden, with_weight = ctx.needs_input_grad[:2]  # the caller has checked the grad mode
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if with_weight else None
        for part in _chunks(hidden.shape[0], weight.shape[0], hidden.device):
            logits = hidden[part] @ weight.T
            losses[part], slope = _losses_and_slope(logits, targets[part], coefficients[part])
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, slope.T, hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * coefficients).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The stored gradients times the gradient of the scalar."""
        outer = grads[0]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * outer.to(grad_hidden.dtype),
            None if grad_weight is None else _times(grad_weight, outer, ctx.weight_dtype),
            None,
            None,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` in float32: total [V, H], left [V, N], right [N, H]. Where possible, the product is not stored."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and _adds_to_float32(left.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


@cache
def _adds_to_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds a product of 16-bit matrices to a float32 matrix here. Tried once, because no version promises it."""
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    total = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17).all())


def _times(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`values * factor` in another dtype, in one pass."""
    return torch.mul(values, factor, out=torch.empty_like(values, dtype=dtype))
