"""Matrix products in 8-bit floats (e4m3, arXiv 2209.05433): rounding, and the product with a weight that is held so.

Goes in: rows in bfloat16 or float32, a weight in e4m3. Comes out: rows W^T or rows W in the format of the rows. Each row has a
scale of its own and the weight has one; all are powers of two, so that scaling is exact and a held weight is a bfloat16
number. GPUs with e4m3 products (compute capability 8.9 and above) multiply so; elsewhere the same rounded numbers are
multiplied in the format of the rows: the same result but for the order of the sums, at no gain in speed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 256.0  # what a row's or a weight's largest number stays below once it is scaled; e4m3 ends at 448
CAPABILITY = (8, 9)  # the first with e4m3 products
GPUS_WITH_FP8 = "compute capability 8.9 or newer (RTX 40 and 50, L4, L40S, H100, H200, B200)"
MULTIPLE = 16  # of a weight's rows and columns: what these products need

# Bits of a float32. Magnitudes are compared as whole numbers: a nan is then the largest, and no instruction is used next to
# which Triton stores wrong bytes (https://github.com/triton-lang/triton/issues/11111).
MAGNITUDE, EXPONENT = 0x7FFFFFFF, 0x7F800000
TINY = 27 << 23  # 2^-100: the magnitude below which a row is zero

torch.library.define("mftcoder::round_rows", "(Tensor rows) -> (Tensor, Tensor)")
torch.library.define(
    "mftcoder::fp8_product",
    "(Tensor rows, Tensor scales, Tensor held, Tensor scale, Tensor? bias, ScalarType dtype, bool transposed) -> Tensor",
)


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, n] in e4m3, and their scales float32 [N, 1]. A row that is not finite becomes nan."""
    if not rows.is_cuda or (torch.compiler.is_compiling() and _compiles_e4m3(rows.device)):
        return round_rows_in_torch(rows)  # which a compiler fuses with what made the rows
    rounded, scales = torch.ops.mftcoder.round_rows(rows)
    return rounded, scales


@torch.compiler.assume_constant_result
def _compiles_e4m3(device: torch.device) -> bool:
    """Whether Triton has e4m3 on a CUDA device. For older GPUs compiling it is an error."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= CAPABILITY


def round_rows_in_torch(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The plain twin of the GPU kernel."""
    scales = _scale(_magnitudes(rows).amax(dim=1, keepdim=True))
    return (rows.float() / scales).to(E4M3), scales


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in e4m3, and its scale float32 []."""
    largest = torch.linalg.vector_norm(weight, ord=float("inf"))  # one pass, without a copy
    scale = _scale(_magnitudes(largest))
    return (weight / scale.to(weight.dtype)).to(E4M3), scale


def _magnitudes(numbers: Tensor) -> Tensor:
    return numbers.float().view(torch.int32) & MAGNITUDE


def _scale(largest: Tensor) -> Tensor:
    """The power of two that brings numbers of magnitudes up to `largest` below LARGEST."""
    power = (largest.clamp_min(TINY) & EXPONENT).view(torch.float32)  # <= the largest number < 2 power
    return power * (2.0 / LARGEST)


def fp8_product(
    rounded: Sequence[Tensor],
    held: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype,
    transposed: bool = False,
) -> Tensor:
    """rows W^T + bias [N, out] in `dtype`, or rows W [N, in] if `transposed`.

    `rounded` are the rows of `round_rows` and their scales; `held` are W's bytes [out, in], in any format, and W's scale.
    """
    product: Tensor = torch.ops.mftcoder.fp8_product(*rounded, *held, bias, dtype, transposed)
    return product


def multiply_fp8(
    rows: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype, transposed: bool
) -> Tensor:
    """The product with a weight [out, in] in e4m3, on whatever device this is."""
    if dtype == torch.bfloat16 and lack_of_fp8(rows.device) is None:
        return _multiply_on_gpu(rows, scales, weight, scale, transposed)
    left, right = rows.to(dtype) * scales.to(dtype), weight.to(dtype) * scale.to(dtype)  # exact
    return left @ (right if transposed else right.t())


def _multiply_on_gpu(rows: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, transposed: bool) -> Tensor:
    """The tensor cores read both factors along the dimension that is summed over: rows W needs W^T in memory."""
    from mftcoder.kernels.linear.fp8_triton import transposed_bytes

    right = transposed_bytes(weight) if transposed else weight
    fast = not transposed  # sums in reduced precision: for the forward pass only, as torchao does
    return scaled_product(rows, scales, right, scale, by_rows=_scales_rows(rows.device), fast=fast)


def scaled_product(rows: Tensor, scales: Tensor, right: Tensor, scale: Tensor, *, by_rows: bool, fast: bool) -> Tensor:
    """torch's product rows right^T [N, out] in bfloat16, scaled row by row inside it (`by_rows`) or after it: the same numbers."""
    options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
    if by_rows:
        every = scale.expand(1, right.shape[0]).contiguous()
        return torch._scaled_mm(rows, right.t(), scale_a=scales, scale_b=every, **options)
    product = torch._scaled_mm(rows, right.t(), scale_a=scale, scale_b=torch.ones_like(scale), **options)
    return product.mul_(scales)  # exact: powers of two


@functools.cache
def _scales_rows(device: torch.device) -> bool:
    """Whether cuBLAS scales rows inside its product: on Hopper, from CUDA 12.9. torch's other kernels for it are slow without fast sums."""
    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability(device)[0] == 9 and version >= (12, 9)


@functools.cache
def lack_of_fp8(device: torch.device) -> str | None:
    """Why this device does not multiply e4m3 itself; None if it does, which a small product shows once."""
    if device.type != "cuda":
        return f"a CPU has no products in fp8; NVIDIA GPUs of {GPUS_WITH_FP8} have"
    if torch.version.hip is not None:
        return "AMD's fp8 is another one than NVIDIA's"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"{name} has compute capability {capability[0]}.{capability[1]}; products in fp8 need {GPUS_WITH_FP8}"
    try:
        return None if _multiplies_rightly(device) else f"{name}: a small product in fp8 came out wrong"
    except Exception as error:  # whatever torch, Triton or the driver raise: the emulation takes over
        return (
            f"{name}: a small product in fp8 failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        )


def _multiplies_rightly(device: torch.device) -> bool:
    """Whether rounding on the device equals its twin, and products of small whole numbers are exact in both directions."""
    from mftcoder.kernels.linear.fp8_triton import round_rows_on_gpu

    rows = torch.arange(32 * 64, device=device, dtype=torch.bfloat16).view(32, 64).remainder_(13) - 6
    weight, scale = (rows[:16].T.contiguous() * 0.5).to(E4M3), torch.tensor(2.0, device=device)
    rounded, scales = round_rows_on_gpu(rows, tiny=TINY, largest=LARGEST)
    twin, scales_of_twin = round_rows_in_torch(rows)
    whole = weight.double() * 2
    forward = _multiply_on_gpu(rounded[:, :16].contiguous(), scales, weight, scale, False)
    back = _multiply_on_gpu(rounded, scales, weight, scale, True)
    return (
        torch.equal(rounded.double(), twin.double())
        and torch.equal(scales, scales_of_twin)
        and torch.equal(forward.double(), (rows[:, :16].double() @ whole.T).bfloat16().double())
        and torch.equal(back.double(), (rows.double() @ whole).bfloat16().double())
    )


@torch.library.impl("mftcoder::round_rows", "CUDA")
def _round_rows_on_gpu(rows: Tensor) -> tuple[Tensor, Tensor]:
    if lack_of_fp8(rows.device) is not None:  # triton may be missing too
        return round_rows_in_torch(rows)
    from mftcoder.kernels.linear.fp8_triton import round_rows_on_gpu

    return round_rows_on_gpu(rows, tiny=TINY, largest=LARGEST)


@torch.library.impl("mftcoder::fp8_product", "CompositeExplicitAutograd")
def _fp8_product(
    rows: Tensor,
    scales: Tensor,
    held: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    transposed: bool,
) -> Tensor:
    product = multiply_fp8(rows, scales, held.view(E4M3), scale, dtype, transposed)
    return product if bias is None else product.add_(bias)


@torch.library.register_fake("mftcoder::round_rows")
def _round_rows_shapes(rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows, dtype=E4M3), rows.new_empty(rows.shape[0], 1, dtype=torch.float32)


@torch.library.register_fake("mftcoder::fp8_product")
def _fp8_product_shape(
    rows: Tensor,
    _scales: Tensor,
    held: Tensor,
    _scale: Tensor,
    _bias: Tensor | None,
    dtype: torch.dtype,
    transposed: bool,
) -> Tensor:
    out, width = held.shape[0], held.shape[1] * held.element_size()
    torch._check(rows.shape[1] == (out if transposed else width))
    return rows.new_empty(rows.shape[0], width if transposed else out, dtype=dtype)
