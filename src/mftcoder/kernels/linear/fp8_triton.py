"""Rounding rows to e4m3, bit for bit as `round_rows_in_torch`, and transposing bytes on a GPU, each in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # columns of a row that are read at once
TILE = 64  # side of the square of bytes that is transposed at once


def round_rows_on_gpu(rows: Tensor, *, tiny: int, largest: float) -> tuple[Tensor, Tensor]:
    """Rows [N, n] in e4m3, scaled to below `largest`, and their scales float32 [N, 1].

    `tiny` is the magnitude, as the bits of a float32, below which a row is zero.
    """
    count, width = rows.shape
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    rounded = torch.empty(count, width, dtype=torch.float8_e4m3fn, device=rows.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=rows.device)
    if count:
        _round[(count,)](rows, rounded, scales, rows.stride(0), tiny, largest, width=width, block=BLOCK, num_warps=4)
    return rounded, scales


def transposed_bytes(weight: Tensor) -> Tensor:
    """[in, out] of a weight [out, in] of one-byte numbers, contiguous."""
    rows, columns = weight.shape
    turned = torch.empty(columns, rows, dtype=weight.dtype, device=weight.device)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    _transpose[grid](weight.view(torch.int8), turned.view(torch.int8), rows, columns, tile=TILE, num_warps=4)
    return turned


@triton.jit
def _round(rows, rounded, scales, stride, tiny, largest, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row: its largest magnitude (as bits, see fp8.py), then the row divided by its power of two."""
    row = tl.program_id(0).to(tl.int64)
    peak = tl.zeros([block], tl.int32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        x = tl.load(rows + row * stride + column, mask=column < width, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    top = tl.maximum(tl.max(peak), tiny)
    power = (top & 0x7F800000).to(tl.float32, bitcast=True)
    tl.store(scales + row, power * (2.0 / largest))
    inverse = tl.div_rn(largest * 0.5, power)  # exact, because these are powers of two
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        inside = column < width
        x = tl.load(rows + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(rounded + row * width + column, (x * inverse).to(tl.float8e4nv), mask=inside)


@triton.jit
def _transpose(source, target, rows, columns, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per square: read along the rows of the source, written along the rows of the target."""
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    square = tl.load(source + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside)
    turned = tl.trans(square)
    tl.store(target + column[:, None].to(tl.int64) * rows + row[None, :], turned, mask=tl.trans(inside))
