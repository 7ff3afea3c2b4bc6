"""Rounding to e4m3 and products of rounded numbers; the GPU's kernels are interpreted and compared with their plain twins."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mftcoder.kernels.linear.fp8 import E4M3, LARGEST, fp8_product, round_rows, round_weight, scaled_product

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton: not a CUDA build")


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.integers(-60, 60),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_rounding_is_off_by_at_most_a_sixteenth_or_a_tiny_fraction_of_the_rows_largest(
    numbers: list[float], exponent: int, dtype: torch.dtype
) -> None:
    row = (torch.tensor([numbers], dtype=torch.float64) * 2.0**exponent).to(dtype)
    rounded, scales = round_rows(row)
    held = rounded.double() * scales.double()
    smallest = scales.double() * 2.0**-10  # half of e4m3's smallest step
    assert ((held - row.double()).abs() <= torch.maximum(row.double().abs() / 16, smallest)).all()


def test_scales_are_powers_of_two_so_that_rounded_numbers_are_exact_in_bfloat16() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    rounded, scale = round_weight(weight)
    assert torch.frexp(scale).mantissa == 0.5
    held = rounded.double() * scale.double()
    assert torch.equal(held.bfloat16().double(), held)
    rows, scales = round_rows(weight)
    assert (torch.frexp(scales).mantissa == 0.5).all()
    assert rows.float().abs().max() <= LARGEST


def test_rows_of_zeros_stay_zero_and_rows_that_are_not_finite_become_nan() -> None:
    rows = torch.ones(4, 16)
    rows[0], rows[1, 3], rows[2, 5] = 0, float("nan"), float("inf")
    weight, scale = round_weight(torch.eye(16))
    product = fp8_product(round_rows(rows), (weight, scale), dtype=torch.float32)
    assert torch.equal(product[0], torch.zeros(16)) and torch.equal(product[3], torch.ones(16))
    assert product[1].isnan().all() and product[2].isnan().all()


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_equal_torchs_products_of_the_same_numbers(transposed: bool, by_rows: bool) -> None:
    """torch multiplies e4m3 on CPUs from 2.12; GPUs run the same operation."""
    torch.manual_seed(0)
    weight, scale = round_weight(torch.randn(32, 64))
    rows, scales = round_rows(torch.randn(24, 32 if transposed else 64).bfloat16() * torch.logspace(-9, 9, 24)[:, None])
    ours = fp8_product((rows, scales), (weight, scale), dtype=torch.bfloat16, transposed=transposed)
    right = weight.t().contiguous() if transposed else weight
    try:
        theirs = scaled_product(rows, scales, right, scale, by_rows=by_rows, fast=False)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} on this CPU: {str(error).splitlines()[0][:80]}")
    torch.testing.assert_close(ours / scales, theirs / scales, rtol=0.01, atol=1e-3)


@pytest.mark.skipif(torch.version.cuda is None, reason="not a CUDA build")
@pytest.mark.parametrize("by_rows", [False, True])
def test_torch_accepts_the_shapes_strides_and_scales_of_both_products(by_rows: bool) -> None:
    """torch's own checks of the arguments, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rows, right = (torch.empty(shape, dtype=E4M3, device="cuda") for shape in ((4096, 1536), (8960, 1536)))
        scales, scale = (torch.empty(shape, device="cuda") for shape in ((4096, 1), ()))
        product = scaled_product(rows, scales, right, scale, by_rows=by_rows, fast=True)
    assert (product.shape, product.dtype) == ((4096, 8960), torch.bfloat16)


INTERPRETED = """
    import json, torch, warnings
    from mftcoder.kernels.linear import fp8
    from mftcoder.kernels.linear.fp8_triton import round_rows_on_gpu, transposed_bytes
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    found = {}
    for width in (16, 100, 2048, 5000):
        for dtype in (torch.bfloat16, torch.float32):
            # Numbers that e4m3 has: the interpreter's own rounding is not a GPU's.
            rows = torch.randn(7, width).to(fp8.E4M3).to(dtype) * 2.0 ** torch.arange(-30, 40, 10)[:, None].to(dtype)
            rows[2] = 0
            rows = torch.cat([rows, rows], dim=1)[:, :width]  # not contiguous
            ours, twin = round_rows_on_gpu(rows, tiny=fp8.TINY, largest=fp8.LARGEST), fp8.round_rows_in_torch(rows)
            found[f"{width} {dtype}"] = [torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours, twin)]
    rows = torch.ones(3, 100)
    rows[0, 99], rows[1, 7] = float("nan"), float("inf")
    _, scales = round_rows_on_gpu(rows, tiny=fp8.TINY, largest=fp8.LARGEST)
    found["not finite"] = [scales[:, 0].isinf().tolist() == [True, True, False]]
    for shape in ((48, 208), (64, 64), (100, 3), (16, 16)):
        bytes = torch.randint(-128, 128, shape, dtype=torch.int8)
        found[f"transposed {shape}"] = [torch.equal(transposed_bytes(bytes), bytes.t().contiguous())]
    print(json.dumps(found))
"""


@needs_triton
def test_interpreted_kernels_equal_their_plain_twins() -> None:
    """In a separate process, because Triton decides at its import whether to interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", textwrap.dedent(INTERPRETED)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 13 and all(all(same) for same in found.values()), found


def test_e4m3_is_nvidias_variant() -> None:
    assert torch.finfo(E4M3).max == 448
