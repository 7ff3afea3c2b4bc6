"""The kernel equals its plain-torch twin, for vocabularies that do and do not fill its blocks."""

import pytest
import torch

from mftcoder.kernels.cross_entropy import slope_in_torch
from tests.gpu.device import DEVICE, INTERPRETED, needs_triton

pytestmark = [pytest.mark.gpu, needs_triton]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [97, 4096, 49_152, 151_936])
def test_losses_and_gradients_equal_the_plain_twin(vocabulary: int, dtype: torch.dtype) -> None:
    from mftcoder.kernels.cross_entropy_triton import slope_in_place

    if INTERPRETED and vocabulary > 10_000:
        pytest.skip("a minute a row in the interpreter")
    torch.manual_seed(0)
    logits = (torch.randn(33, vocabulary, device=DEVICE) * 4).to(dtype)
    targets = torch.randint(0, vocabulary, (33,), device=DEVICE)
    coefficients = torch.rand(33, device=DEVICE)
    losses, slope = slope_in_torch(logits.clone(), targets, coefficients)
    found = slope_in_place(logits, targets, coefficients)
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, slope, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
