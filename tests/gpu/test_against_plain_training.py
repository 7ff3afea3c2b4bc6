"""Gradients and ten steps on the device equal transformers' own in float32 on the CPU, where each sample runs alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.small import (
    ROUNDING,
    TRAIN,
    gap,
    gradient,
    language_model,
    plain_gradient,
    plain_model,
    plain_training,
    samples,
    step_data,
    train,
)

ADAPTERS = pytest.mark.parametrize("adapter", ["full", "lora"])
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@ADAPTERS
@FORMATS
def test_gradients_are_those_of_samples_alone_in_float32(
    small_llama: Path, device: torch.device, adapter: str, dtype: torch.dtype
) -> None:
    data = step_data(samples(seed=0), micro_batches=2)
    expected = plain_gradient(plain_model(small_llama, adapter), data)
    found = gradient(language_model(small_llama, device, dtype, adapter=adapter), data)
    assert gap(found, expected) < ROUNDING[dtype]


@ADAPTERS
@FORMATS
def test_ten_steps_follow_torchs_adamw_in_float32(
    small_llama: Path, device: torch.device, adapter: str, dtype: torch.dtype
) -> None:
    steps = [step_data(samples(seed), micro_batches=2) for seed in range(10)]
    expected = plain_training(plain_model(small_llama, adapter), steps)
    found = train(language_model(small_llama, device, dtype, adapter=adapter), steps)
    assert expected[-1] < 0.9 * expected[0]
    assert found == pytest.approx(expected, rel=5e-4 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("field", [{"optim": "adamw_8bit"}, {"master_weights": "stochastic_rounding"}], ids=str)
def test_ten_steps_of_an_optimizer_with_less_memory_follow_adamw(
    small_llama: Path, device: torch.device, field: dict[str, Any]
) -> None:
    if "optim" in field:
        pytest.importorskip("bitsandbytes")
    steps = [step_data(samples(seed)) for seed in range(10)]
    whole, less = (
        train(language_model(small_llama, device, torch.bfloat16), steps, TRAIN.model_copy(update=update))
        for update in ({}, field)
    )
    assert whole[-1] < 0.9 * whole[0] and less != whole
    assert less == pytest.approx(whole, rel=0.01)
