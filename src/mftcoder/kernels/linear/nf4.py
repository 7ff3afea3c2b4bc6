"""Products with a 4-bit weight of bitsandbytes, which is unpacked for each product and then freed.

The weight is that of a `Linear4bit` with double quantization. bitsandbytes packs and unpacks it; the products are computed here, in
the model's dtype or in e4m3.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mftcoder.kernels.linear.fp8 import multiply_fp8, round_weight

BLOCK, BLOCKS_OF_SCALES = 64, 256  # weights with one scale, and scales with one float32

_HELD = "Tensor packed, Tensor absmax, Tensor nested_absmax, Tensor code, Tensor offset"
torch.library.define("mftcoder::nf4_product", f"(Tensor rows, {_HELD}, Tensor? bias, bool transposed) -> Tensor")
torch.library.define("mftcoder::nf4_add_product_", f"(Tensor(a!) into, Tensor rows, {_HELD}, bool transposed) -> ()")
torch.library.define(
    "mftcoder::nf4_fp8_product",
    f"(Tensor rows, Tensor scales, {_HELD}, Tensor? bias, ScalarType dtype, bool transposed) -> Tensor",
)


def nf4_product(rows: Tensor, held: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """rows W^T + bias."""
    product: Tensor = torch.ops.mftcoder.nf4_product(rows, *held, bias, False)
    return product


def nf4_product_back(rows: Tensor, held: Sequence[Tensor], into: Tensor | None) -> Tensor:
    """rows W, added to `into` in place if it is given."""
    if into is None:
        product: Tensor = torch.ops.mftcoder.nf4_product(rows, *held, None, True)
        return product
    torch.ops.mftcoder.nf4_add_product_(into, rows, *held, True)
    return into


def nf4_fp8_product(
    rounded: Sequence[Tensor],
    held: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype,
    transposed: bool = False,
) -> Tensor:
    """The same for rows in e4m3 and their scales; the unpacked weight is rounded to e4m3."""
    product: Tensor = torch.ops.mftcoder.nf4_fp8_product(*rounded, *held, bias, dtype, transposed)
    return product


def held_tensors(packed: Tensor, state: Any) -> tuple[Tensor, ...]:
    """`held` for a packed weight and its QuantState of bitsandbytes."""
    return packed, state.absmax, state.state2.absmax, state.state2.code, state.offset


def is_known(state: Any) -> bool:
    """Whether a QuantState is NF4 with double quantization in the usual blocks, of an even number of weights."""
    return (
        state.quant_type == "nf4"
        and state.nested
        and (state.blocksize, state.state2.blocksize) == (BLOCK, BLOCKS_OF_SCALES)
        and state.shape.numel() % 2 == 0
    )


def _matrix(rows: Tensor, held: Sequence[Tensor], transposed: bool, dtype: torch.dtype) -> Tensor:
    """The weight [out, in]; if `transposed`, viewed by the width of the rows that are multiplied with W."""
    import bitsandbytes.functional as bits

    packed, absmax, nested_absmax, code, offset = held
    scales = bits.QuantState(absmax=nested_absmax, code=code, blocksize=BLOCKS_OF_SCALES, dtype=torch.float32)
    state = bits.QuantState(
        absmax=absmax,
        shape=_shape(rows, packed, transposed),
        dtype=dtype,
        blocksize=BLOCK,
        quant_type="nf4",
        offset=offset,
        state2=scales,
    )
    weight: Tensor = bits.dequantize_4bit(packed, state)
    return weight


def _shape(rows: Tensor, packed: Tensor, transposed: bool) -> torch.Size:
    """[out, in] of the weight: one of them is the width of the rows."""
    width = rows.shape[1]
    other = 2 * packed.numel() * packed.element_size() // width
    return torch.Size((width, other) if transposed else (other, width))


@torch.library.impl("mftcoder::nf4_product", "CompositeExplicitAutograd")
def _product(rows: Tensor, *held_and_more: Any) -> Tensor:
    *held, bias, transposed = held_and_more
    weight = _matrix(rows, held, transposed, rows.dtype)
    return F.linear(rows, weight.t() if transposed else weight, bias)


@torch.library.impl("mftcoder::nf4_add_product_", "CompositeExplicitAutograd")
def _add_product(into: Tensor, rows: Tensor, *held_and_transposed: Any) -> None:
    *held, transposed = held_and_transposed
    weight = _matrix(rows, held, transposed, rows.dtype)
    into.addmm_(rows, weight if transposed else weight.t())


@torch.library.impl("mftcoder::nf4_fp8_product", "CompositeExplicitAutograd")
def _fp8_product(rows: Tensor, scales: Tensor, *held_and_more: Any) -> Tensor:
    *held, bias, dtype, transposed = held_and_more
    weight, scale = round_weight(_matrix(rows, held, transposed, dtype))
    product = multiply_fp8(rows, scales, weight, scale, dtype, transposed)
    return product if bias is None else product.add_(bias)


@torch.library.register_fake("mftcoder::nf4_product")
def _product_shape(rows: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    return rows.new_empty(rows.shape[0], _shape(rows, packed, rest[-1])[1 if rest[-1] else 0])


@torch.library.register_fake("mftcoder::nf4_add_product_")
def _add_product_shape(into: Tensor, rows: Tensor, packed: Tensor, *rest: Any) -> None:
    torch._check(tuple(into.shape) == tuple(_product_shape(rows, packed, *rest).shape))


@torch.library.register_fake("mftcoder::nf4_fp8_product")
def _fp8_product_shape(rows: Tensor, scales: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    *_, dtype, transposed = rest
    return rows.new_empty(rows.shape[0], _shape(rows, packed, transposed)[1 if transposed else 0], dtype=dtype)
