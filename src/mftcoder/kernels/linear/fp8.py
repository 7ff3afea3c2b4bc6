"""Matrix products in 8-bit floats (e4m3, arXiv 2209.05433): rounding, and the product of rows with a weight in e4m3.

Each row has its own scale and the weight has one. All scales are powers of two, so that scaling is exact and a weight in e4m3 is
exact in bfloat16. GPUs with e4m3 products (compute capability 8.9 and above) use them. Elsewhere the same rounded numbers are
multiplied in the dtype of the rows: the same result except for the order of the sums, without a gain in speed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mftcoder.errors import reason

E4M3 = torch.float8_e4m3fn
LARGEST = 256.0  # the upper bound of scaled numbers; e4m3 ends at 448
CAPABILITY = (8, 9)  # the first compute capability with e4m3 products
GPUS_WITH_FP8 = "compute capability 8.9 or newer (RTX 40 and 50, L4, L40S, H100, H200, B200)"
MULTIPLE = 16  # the rows and columns of a weight must be multiples of this

# Bits of a float32. Magnitudes are compared as integers: a nan is then the largest, and this avoids an instruction that makes
# Triton store wrong bytes (https://github.com/triton-lang/triton/issues/11111).
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
        return round_rows_in_torch(rows)  # a compiler fuses it with the operation that computes the rows
    rounded, scales = torch.ops.mftcoder.round_rows(rows)
    return rounded, scales


@torch.compiler.assume_constant_result
def _compiles_e4m3(device: torch.device) -> bool:
    """Whether Triton supports e4m3 on a CUDA device; on older GPUs, compiling it is an error."""
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
    """The power of two that scales numbers of magnitudes up to `largest` to below LARGEST."""
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

    `rounded` are rows and scales from `round_rows`; `held` are W's bytes [out, in], viewed as any dtype, and W's scale.
    """
    product: Tensor = torch.ops.mftcoder.fp8_product(*rounded, *held, bias, dtype, transposed)
    return product


def multiply_fp8(
    rows: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype, transposed: bool
) -> Tensor:
    """The product with a weight [out, in] in e4m3, on any device."""
    if dtype == torch.bfloat16 and lack_of_fp8(rows.device) is None:
        return _multiply_on_gpu(rows, scales, weight, scale, transposed)
    left, right = rows.to(dtype) * scales.to(dtype), weight.to(dtype) * scale.to(dtype)  # exact
    return left @ (right if transposed else right.t())


def _multiply_on_gpu(rows: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, transposed: bool) -> Tensor:
    """The tensor cores read both factors along the summed dimension, so rows W needs W^T in memory."""
    from mftcoder.kernels.linear.fp8_triton import transposed_bytes

    right = transposed_bytes(weight) if transposed else weight
    fast = not transposed  # sums in reduced precision, only in the forward pass, as in torchao
    return scaled_product(rows, scales, right, scale, by_rows=_scales_rows(rows.device), fast=fast)


def scaled_product(rows: Tensor, scales: Tensor, right: Tensor, scale: Tensor, *, by_rows: bool, fast: bool) -> Tensor:
    """torch's product rows right^T [N, out] in bfloat16; rows are scaled inside it (`by_rows`) or after it, which is the same."""
    options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
    if by_rows:
        every = scale.expand(1, right.shape[0]).contiguous()
        return torch._scaled_mm(rows, right.t(), scale_a=scales, scale_b=every, **options)
    product = torch._scaled_mm(rows, right.t(), scale_a=scale, scale_b=torch.ones_like(scale), **options)
    return product.mul_(scales)  # exact: powers of two


@functools.cache
def _scales_rows(device: torch.device) -> bool:
    """Whether cuBLAS scales rows inside its product: on Hopper from CUDA 12.9. torch's other kernels are slow without fast sums."""
    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability(device)[0] == 9 and version >= (12, 9)


@functools.cache
def lack_of_fp8(device: torch.device) -> str | None:
    """Why this device does not multiply e4m3 itself; None if it does, which a small product verifies once."""
    if device.type != "cuda":
        return f"a CPU has no fp8 products; they need an NVIDIA GPU of {GPUS_WITH_FP8}"
    if torch.version.hip is not None:
        return "AMD's fp8 differs from NVIDIA's"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"{name} has compute capability {capability[0]}.{capability[1]}; products in fp8 need {GPUS_WITH_FP8}"
    try:
        return None if _multiplies_correctly(device) else f"{name}: a small fp8 product gave a wrong result"
    except Exception as error:  # from torch, Triton or the driver: the emulation is used instead
        return f"{name}: a small fp8 product failed: {type(error).__name__}: {reason(error)}"


def _multiplies_correctly(device: torch.device) -> bool:
    """Whether rounding on the device equals its twin, and products of small integers are exact in both directions."""
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
