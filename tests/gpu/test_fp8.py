"""Products in fp8: on a GPU what their plain twins give, everywhere the losses of bfloat16."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.kernels.linear.fp8 import fp8_product, lack_of_fp8, round_rows, round_rows_in_torch, round_weight
from mftcoder.models.layers.fp8 import multiply_in_fp8
from tests.gpu.small import gap, gradient, language_model, samples, step_data, train

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="no torchao")
slow = pytest.mark.slow(reason="two runs of a small model; `make gpu` runs them all")
SIZES = [(300, 1536, 256), (129, 64, 4096)]  # rows, in, out


@pytest.mark.parametrize(("count", "width", "out"), SIZES)
def test_rounding_and_both_products_equal_their_twins(device: torch.device, count: int, width: int, out: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows, slopes, weight = (
        torch.randn(shape, generator=random) for shape in ((count, width), (count, out), (out, width))
    )
    rows, slopes = rows * torch.logspace(-6, 6, count)[:, None], slopes * 1e-5
    held, scale = round_weight(weight)
    for given, transposed in ((rows.bfloat16(), False), (slopes.bfloat16(), True)):
        twin = round_rows_in_torch(given)
        rounded, scales = round_rows(given.to(device))
        assert torch.equal(rounded.cpu().view(torch.uint8), twin[0].view(torch.uint8)) and torch.equal(
            scales.cpu(), twin[1]
        )
        product = fp8_product(
            (rounded, scales), (held.to(device), scale.to(device)), dtype=torch.bfloat16, transposed=transposed
        )
        expected = twin[0].double() @ ((held if transposed else held.t()).double() * scale.double())
        error = (product.cpu().double() / twin[1].double() - expected).norm() / expected.norm()
        assert error < 0.01  # bfloat16's rounding, and the reduced sums of the forward pass


def test_a_gpu_that_should_multiply_in_fp8_does(device: torch.device) -> None:
    should = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)
    assert (lack_of_fp8(device) is None) == should, lack_of_fp8(device)


@pytest.mark.parametrize("quantization", ["fp8", pytest.param("4bit-fp8", marks=[needs_bitsandbytes, slow])])
def test_lora_over_fp8_follows_the_losses_of_bfloat16(
    small_llama: Path, device: torch.device, quantization: str
) -> None:
    """200 steps on a GPU within 1%; fewer on a CPU. Means of 20 steps are compared, over the same base."""
    steps = [step_data(samples(seed)) for seed in range(200 if device.type == "cuda" else 20)]
    held = "4bit" if quantization == "4bit-fp8" else None
    whole, rounded = (
        torch.tensor(train(language_model(small_llama, device, torch.bfloat16, adapter="lora", quantization=q), steps))
        for q in (held, quantization)
    )
    assert whole[-5:].mean() < 0.97 * whole[0]
    assert ((rounded.view(-1, 20).mean(1) / whole.view(-1, 20).mean(1) - 1).abs() < 0.01).all()


def test_the_mlp_left_in_bfloat16_brings_the_gradient_nearer_to_that_of_bfloat16(
    small_llama: Path, device: torch.device
) -> None:
    def found(**base: Any) -> torch.Tensor:
        return gradient(
            language_model(small_llama, device, torch.bfloat16, adapter="lora", **base), step_data(samples(0))
        )

    whole, rounded = found(), found(quantization="fp8")
    partly = found(quantization="fp8", kept=("mlp",))
    assert 0 < gap(partly, whole) < 0.9 * gap(rounded, whole)


@pytest.mark.slow(reason="400 steps")
@pytest.mark.parametrize("quantization", ["fp8", pytest.param("4bit-fp8", marks=needs_bitsandbytes)])
def test_two_hundred_short_steps_lose_as_in_bfloat16_to_a_percent(
    small_llama: Path, device: torch.device, quantization: str
) -> None:
    steps = [step_data(samples(seed)[2:6]) for seed in range(200)]
    held = "4bit" if quantization == "4bit-fp8" else None
    whole, rounded = (
        torch.tensor(train(language_model(small_llama, device, torch.bfloat16, adapter="lora", quantization=q), steps))
        .unfold(0, 20, 1)
        .mean(1)
        for q in (held, quantization)
    )
    assert whole[-1] < 0.9 * whole[0]
    assert (rounded / whole - 1).abs().max() < 0.01


@needs_torchao
@pytest.mark.parametrize("recipe", ["tensorwise", pytest.param("rowwise", marks=slow)])
def test_full_fine_tuning_in_fp8_follows_the_losses_of_bfloat16(
    small_llama: Path, device: torch.device, recipe: str
) -> None:
    steps = [step_data(samples(seed)) for seed in range(200 if device.type == "cuda" else 20)]
    losses = []
    for in_fp8 in (False, True):
        model = language_model(small_llama, device, torch.bfloat16)
        if in_fp8:
            multiply_in_fp8(model.module, recipe, emulate=lack_of_fp8(device) is not None)
        losses.append(torch.tensor(train(model, steps)).view(-1, 20).mean(1))
    assert ((losses[1] / losses[0] - 1).abs() < 0.01).all()
