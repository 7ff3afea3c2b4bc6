"""LoRA over a base in fewer bits is LoRA over the weights that those bits stand for."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mftcoder.models.layers.quantize import as_held, quantizable_layers
from tests.gpu.small import ROUNDING, gap, gradient, language_model, samples, step_data, train

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")


def test_gradients_over_4_bits_are_those_over_the_weights_they_stand_for(
    small_llama: Path, device: torch.device
) -> None:
    data = step_data(samples(5), micro_batches=2)
    in_bits = language_model(small_llama, device, torch.bfloat16, adapter="lora", quantization="4bit")
    whole = language_model(small_llama, device, torch.bfloat16, adapter="lora")
    for name, layer in quantizable_layers(whole.causal_lm).items():
        if "lora_" not in name:
            layer.weight.data.copy_(as_held(layer.weight.data, "4bit", torch.bfloat16))  # type: ignore[union-attr]
    assert gap(gradient(in_bits, data), gradient(whole, data)) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_ten_steps_over_bits_learn_as_over_the_whole_base(
    small_llama: Path, device: torch.device, quantization: str
) -> None:
    steps = [step_data(samples(seed)) for seed in range(10)]
    whole = train(language_model(small_llama, device, torch.bfloat16, adapter="lora"), steps)
    in_bits = train(
        language_model(small_llama, device, torch.bfloat16, adapter="lora", quantization=quantization), steps
    )
    assert whole[-1] < 0.95 * whole[0]
    assert in_bits == pytest.approx(whole, rel=0.05)
