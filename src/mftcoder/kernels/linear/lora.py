"""Linear layers with LoRA weights, computed as one function for a group of layers with the same input.

    y_i = x W_i^T + b_i + s (x A_i^T) B_i^T                                                    (LoRA, arXiv 2106.09685)

The outputs are differentiable in x, A and B. A group needs one product with all its A, the LoRA product is added in the memory of the
frozen product, and x is saved once for the backward pass. `frozen.PRODUCTS` multiplies with the frozen weights, and
`models/layers/lora_forward.py` finds the groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mftcoder.kernels.linear.frozen import PRODUCTS, FrozenWeight, add_product_


@dataclass(frozen=True)
class LoraWeights:
    """One layer of a group: y [N, out] of x [N, in]."""

    a: Tensor  # [r, in], trained
    b: Tensor  # [out, r], trained
    frozen: FrozenWeight


def lora_linear(x: Tensor, layers: Sequence[LoraWeights], scale: float) -> tuple[Tensor, ...]:
    """Each layer's output [..., out] for their common input x [..., in]. All weights have the same representation."""
    how = layers[0].frozen.how
    assert all(layer.frozen.how == how for layer in layers)
    tensors = [t for layer in layers for t in (layer.a, layer.b, layer.frozen.bias, *layer.frozen.tensors)]
    outputs = _LoraGroup.apply(x.reshape(-1, x.shape[-1]), how, scale, len(layers), *tensors)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def _by_layer(tensors: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """`(a, b, bias, *held)` of each layer."""
    size = len(tensors) // count
    return [tensors[start : start + size] for start in range(0, len(tensors), size)]


class _LoraGroup(torch.autograd.Function):
    """The outputs of a group, and all its gradients in one node of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str, scale: float, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """x [N, in] -> y_i [N, out_i]."""
        outputs, inner = group_forward(x, how, scale, _by_layer(tensors, count))
        ctx.save_for_backward(x, inner, *tensors)
        ctx.how, ctx.scale, ctx.count = how, scale, count
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Any, ...]:
        """A layer whose output was not used gets no gradients, like a layer that did not run."""
        x, inner, *tensors = ctx.saved_tensors
        layers = _by_layer(tensors, ctx.count)
        slope_x, slopes_a, slopes_b = group_backward(
            x, inner, slopes, ctx.how, ctx.scale, layers, with_x=ctx.needs_input_grad[0]
        )
        nothing = [None] * (len(tensors) // ctx.count - 2)
        of_layers = [s for a, b in zip(slopes_a, slopes_b, strict=True) for s in (a, b, *nothing)]
        return (slope_x, None, None, None, *of_layers)


def group_forward(x: Tensor, how: str, scale: float, layers: list[Sequence[Any]]) -> tuple[list[Tensor], Tensor]:
    """Outputs [N, out_i], and x A^T [N, sum of LoRA ranks], which the backward pass needs."""
    product = PRODUCTS[how]
    inner = x @ torch.cat([a for a, *_ in layers]).t()
    read = product.read(x)
    outputs, start = [], 0
    for _, b, bias, *held in layers:
        y = product.forward(read, held, bias, x.dtype)
        rank = b.shape[1]
        add_product_(y, inner[:, start : start + rank], b.t(), scale)
        outputs.append(y)
        start += rank
    return outputs, inner


def group_backward(
    x: Tensor,
    inner: Tensor,
    slopes: Sequence[Tensor | None],
    how: str,
    scale: float,
    layers: list[Sequence[Any]],
    *,
    with_x: bool,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Gradients of x, of each A and of each B. Each upstream gradient is used in three products only."""
    product = PRODUCTS[how]
    slope_x: Tensor | None = None
    slopes_b: list[Tensor | None] = []
    outer, used, start = [], [], 0  # outer: s dy B, the gradient of x A^T
    for slope, (a, b, _, *held) in zip(slopes, layers, strict=True):
        rank = b.shape[1]
        if slope is not None:
            outer.append(slope @ (b * scale))
            slopes_b.append((slope.t() @ inner[:, start : start + rank]) * scale)
            used.append(a)
            if with_x:
                slope_x = product.backward(product.read(slope), held, x.dtype, slope_x)
        else:
            slopes_b.append(None)
        start += rank
    if not used:
        return None, [None] * len(layers), slopes_b
    together = torch.cat(outer, dim=1)  # [N, sum of ranks]
    parts = iter((together.t() @ x).split([a.shape[0] for a in used]))
    slopes_a: list[Tensor | None] = [None if slope is None else next(parts) for slope in slopes]
    if slope_x is not None:
        add_product_(slope_x, together, torch.cat(used), 1.0)
    return slope_x, slopes_a, slopes_b
