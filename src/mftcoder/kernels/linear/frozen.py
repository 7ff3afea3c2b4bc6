"""Products with a weight that does not train: y = x W^T and dx = dy W, for each representation of W.

The representations are `plain` (the weight itself), `fp8` (e4m3, both factors rounded: `fp8.py`), `nf4` (4 bits of bitsandbytes,
unpacked for each product) and `nf4_fp8` (unpacked and rounded to e4m3). Each product with a quantized weight is one operator, so that
a compiler neither saves an unpacked weight for the backward pass nor shares it between the passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mftcoder.kernels.linear.fp8 import fp8_product, round_rows
from mftcoder.kernels.linear.nf4 import nf4_fp8_product, nf4_product, nf4_product_back

Read = tuple[Tensor, ...]
"""The rows as input of the products: themselves, or in e4m3 with one scale per row."""


@dataclass(frozen=True)
class FrozenWeight:
    """A weight [out, in] in its representation, and its layer's bias."""

    how: str  # a key of PRODUCTS
    tensors: tuple[Tensor, ...]
    bias: Tensor | None = None


torch.library.define("mftcoder::add_product_", "(Tensor(a!) into, Tensor left, Tensor right, float scale) -> ()")


@torch.library.impl("mftcoder::add_product_", "CompositeExplicitAutograd")
def _add_product(into: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    into.addmm_(left, right, alpha=scale)


@torch.library.register_fake("mftcoder::add_product_")
def _add_product_shapes(into: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    torch._check(tuple(into.shape) == (left.shape[0], right.shape[1]) and left.shape[1] == right.shape[0])


def add_product_(into: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """`into += scale * left @ right`, in place. It is an operator, because a compiler turns addmm_ into a copy and an addmm."""
    torch.ops.mftcoder.add_product_(into, left, right, scale)
    return into


class _Plain:
    """The weight itself, in the model's dtype."""

    def read(self, rows: Tensor) -> Read:
        """The rows [N, n] as input that all their products share."""
        return (rows,)

    def forward(self, read: Read, held: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x W^T + bias [N, out], in new memory."""
        return F.linear(read[0], held[0], bias)

    def backward(self, read: Read, held: Sequence[Tensor], dtype: torch.dtype, into: Tensor | None) -> Tensor:
        """dy W [N, in], plus `into` if given; `into` may be overwritten."""
        return read[0] @ held[0] if into is None else add_product_(into, read[0], held[0])


class _Nf4(_Plain):
    """The weight that `nf4.py` unpacks, multiplied in the model's dtype."""

    def forward(self, read: Read, held: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return nf4_product(read[0], held, bias)

    def backward(self, read: Read, held: Sequence[Tensor], dtype: torch.dtype, into: Tensor | None) -> Tensor:
        return nf4_product_back(read[0], held, into)


class _Fp8:
    """e4m3 bytes of the weight and their scale; the rows are rounded too. Its methods are those of `_Plain`."""

    product = staticmethod(fp8_product)

    def read(self, rows: Tensor) -> Read:
        return round_rows(rows)

    def forward(self, read: Read, held: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return self.product(read, held, bias, dtype=dtype)

    def backward(self, read: Read, held: Sequence[Tensor], dtype: torch.dtype, into: Tensor | None) -> Tensor:
        return _sum(into, self.product(read, held, dtype=dtype, transposed=True))


class _Nf4Fp8(_Fp8):
    """The unpacked weight, multiplied as in `_Fp8`."""

    product = staticmethod(nf4_fp8_product)


PRODUCTS: dict[str, _Plain | _Fp8] = {"plain": _Plain(), "fp8": _Fp8(), "nf4": _Nf4(), "nf4_fp8": _Nf4Fp8()}


# Not in place: torch 2.11's compiler loses the gradients of a function if an operator of torch changes its tensors in place.
def _sum(into: Tensor | None, product: Tensor) -> Tensor:
    return product if into is None else into + product
