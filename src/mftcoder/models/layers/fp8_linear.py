"""A frozen linear layer whose weight is held in e4m3: a byte a weight, multiplied by the tensor cores of newer GPUs.

Goes in: a linear layer in its original precision. Comes out: a layer in its place that trains nothing and multiplies as
`kernels/linear/fp8.py` does. The bytes lie in a parameter of the model's own dtype, two in one number, so that an engine that
shards or moves parameters treats them like any other and converts nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mftcoder.kernels.linear.fp8 import E4M3, MULTIPLE, fp8_product, round_rows, round_weight


class Fp8Linear(nn.Linear):
    """y = x W^T + bias; `weight` [out, in / 2] holds the bytes of W [out, in]."""

    weight_scale: Tensor

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rounded, scale = round_weight(linear.weight.detach())
        self.weight = nn.Parameter(rounded.view(linear.weight.dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self.weight, self.weight_scale, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def whole_weight(self) -> Tensor:
        """What the bytes stand for [out, in], in the model's dtype."""
        return self.weight.view(E4M3).to(self.weight.dtype) * self.weight_scale.to(self.weight.dtype)


def fits(layer: nn.Module) -> bool:
    """Whether e4m3 products take a layer: a plain linear one of suitable sizes."""
    return type(layer) is nn.Linear and sizes_fit(layer.out_features, layer.in_features)


def sizes_fit(*sizes: int) -> bool:
    """Whether e4m3 products take a weight of these sizes."""
    return all(size % MULTIPLE == 0 for size in sizes)


def hold_in_fp8(model: Any, names: list[str], device: torch.device | str) -> None:
    """Put an Fp8Linear in the place of each named layer; each weight goes to the device by itself, and its original is let go."""
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Fp8Linear(getattr(owner, child).to(device)))


class _Product(torch.autograd.Function):
    """The product with the gradient that it has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """[N, in] -> [N, out]."""
        ctx.save_for_backward(held, scale)
        return fp8_product(round_rows(x), (held, scale), bias, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        """[N, out] -> [N, in]."""
        slope = slopes[0]
        slope_x = fp8_product(round_rows(slope), ctx.saved_tensors, dtype=slope.dtype, transposed=True)
        return slope_x, None, None, None
