"""A frozen layer in e4m3 without LoRA weights, as peft's forward and other layers use it."""

import pytest
import torch
from torch import nn

from mftcoder.kernels.linear.fp8 import round_rows
from mftcoder.models.layers.fp8 import Fp8Linear


@pytest.mark.parametrize("biased", [False, True])
def test_output_and_gradient_are_those_of_the_rounded_factors(biased: bool) -> None:
    torch.manual_seed(0)
    layer = Fp8Linear(nn.Linear(64, 32, bias=biased, dtype=torch.bfloat16))
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    slope = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    y = layer(x)
    y.backward(slope)
    weight = layer.whole_weight().double()
    expected = whole(x) @ weight.T + (layer.bias.double() if biased else 0)
    assert x.grad is not None and not any(parameter.requires_grad for parameter in layer.parameters())
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(x.grad.double(), whole(slope) @ weight, rtol=0.02, atol=0.02)


def whole(rows: torch.Tensor) -> torch.Tensor:
    rounded, scales = round_rows(rows.detach().flatten(0, -2))
    return (rounded.double() * scales.double()).view(rows.shape)
