"""Products with a frozen weight: each representation against the dense product with the same values."""

import importlib.util
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mftcoder.kernels.linear.fp8 import round_rows, round_weight
from mftcoder.kernels.linear.frozen import PRODUCTS
from mftcoder.kernels.linear.nf4 import held_tensors, is_known

IN, OUT, ROWS = 64, 32, 40
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
ABSENT = "cuda" if torch.version.cuda else "meta"  # fake CUDA tensors need a build that knows the device
WAYS = [
    "plain",
    "fp8",
    *(pytest.param(way, marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="no bitsandbytes")) for way in ("nf4", "nf4_fp8")),
]  # fmt: skip


def held(way: str, weight: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    """The tensors of the representation, and the dense weight with the same values."""
    if way == "plain":
        return (weight,), weight
    if way == "fp8":
        rounded, scale = round_weight(weight)
        return (rounded.view(weight.dtype), scale), rounded.to(weight.dtype) * scale.to(weight.dtype)
    import bitsandbytes.functional as bits

    packed, state = bits.quantize_4bit(weight, quant_type="nf4", compress_statistics=True, quant_storage=weight.dtype)
    assert is_known(state)
    dense = bits.dequantize_4bit(packed, state)
    if way == "nf4_fp8":
        rounded, scale = round_weight(dense)
        dense = rounded.to(weight.dtype) * scale.to(weight.dtype)
    return held_tensors(packed, state), dense


def rows_read(way: str, rows: Tensor) -> Tensor:
    """The rows as a product uses them."""
    if "fp8" not in way:
        return rows
    rounded, scales = round_rows(rows)
    return rounded.to(rows.dtype) * scales.to(rows.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_forward_and_backward_equal_the_dense_product(way: str, biased: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(OUT, IN, dtype=dtype), torch.randn(OUT, dtype=dtype)
    x, slope, before = (torch.randn(ROWS, size, dtype=dtype) for size in (IN, OUT, IN))
    tensors, dense = held(way, weight)
    product = PRODUCTS[way]
    y = product.forward(product.read(x), tensors, bias if biased else None, dtype)
    expected = rows_read(way, x).double() @ dense.double().T + (bias.double() if biased else 0)
    slack = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(y.double(), expected, **slack)
    back = rows_read(way, slope).double() @ dense.double()
    torch.testing.assert_close(product.backward(product.read(slope), tensors, dtype, None).double(), back, **slack)
    added = product.backward(product.read(slope), tensors, dtype, before.clone())
    torch.testing.assert_close(added.double(), before.double() + back, **slack)
    assert (y.dtype, y.shape, added.dtype, added.shape) == (dtype, (ROWS, OUT), dtype, (ROWS, IN))


@pytest.mark.parametrize("way", WAYS)
def test_each_operator_has_its_shapes_without_a_gpu(way: str) -> None:
    """Fake CUDA tensors run the same code as real ones, up to the operators, whose shapes are declared."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    real, _ = held(way, torch.randn(OUT, IN, dtype=torch.bfloat16))
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(tensor).to(ABSENT) for tensor in real]
        x, slope = (torch.empty(ROWS, size, dtype=torch.bfloat16, device=ABSENT) for size in (IN, OUT))
        product = PRODUCTS[way]
        y = product.forward(product.read(x), tensors, torch.empty(OUT, dtype=torch.bfloat16, device=ABSENT), x.dtype)
        back = product.backward(product.read(slope), tensors, x.dtype, None)
        added = product.backward(product.read(slope), tensors, x.dtype, back)
    for result, size in ((y, OUT), (back, IN), (added, IN)):
        assert (result.device.type, result.dtype, tuple(result.shape)) == (ABSENT, torch.bfloat16, (ROWS, size))


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="no bitsandbytes")
def test_other_4_bit_formats_are_not_supported() -> None:
    import bitsandbytes.functional as bits

    weight = torch.randn(OUT, IN)
    others = [{"quant_type": "fp4", "compress_statistics": True}, {"quant_type": "nf4", "compress_statistics": False}]
    others.append({"quant_type": "nf4", "compress_statistics": True, "blocksize": 128})
    assert not any(is_known(bits.quantize_4bit(weight, **other)[1]) for other in others)
    assert not is_known(bits.quantize_4bit(torch.randn(3, 5), quant_type="nf4", compress_statistics=True)[1])
