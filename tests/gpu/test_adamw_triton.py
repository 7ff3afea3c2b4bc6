"""The one-pass AdamW kernel equals its plain twin, on a GPU or in Triton's interpreter (TRITON_INTERPRET=1)."""

import pytest
import torch

from mftcoder.kernels.adamw import AdamWRule, AdamWTensors
from tests.gpu.device import DEVICE, INTERPRETED, needs_triton
from tests.unit.kernels.test_adamw import run, twin, weights

pytestmark = [pytest.mark.gpu, needs_triton]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drawn", [False, True])
def test_the_kernel_equals_its_twin(dtype: torch.dtype, drawn: bool) -> None:
    from mftcoder.kernels.adamw_triton import OnePassAdamW

    rule = AdamWRule(0.9, 0.999, 1e-8, stochastic_rounding=drawn)
    plain, ours = (weights(dtype, drawn=drawn, device=DEVICE) for _ in range(2))
    counted = run(twin(plain, rule), plain, dtype)
    assert torch.equal(run(OnePassAdamW(ours, rule).update, ours, dtype), counted)
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b.second_moment, a.second_moment, rtol=1e-6, atol=0)
        torch.testing.assert_close(b.master, a.master, rtol=1e-2 if drawn else 1e-5, atol=1e-6)
        # The interpreter cuts off where the device rounds to the nearest: a step in the last place of bfloat16.
        torch.testing.assert_close(b.weight, a.weight, rtol=1e-2 if INTERPRETED else 1e-5, atol=1e-6)


def test_weights_and_gradients_of_several_types_are_updated_together() -> None:
    from mftcoder.kernels.adamw_triton import OnePassAdamW

    rule = AdamWRule(0.9, 0.999, 1e-8)

    def mixed() -> list[AdamWTensors]:
        return [
            *weights(torch.bfloat16, drawn=False, device=DEVICE),
            *weights(torch.float32, drawn=False, device=DEVICE),
        ]

    ours, plain = mixed(), mixed()
    kinds = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, *[torch.float32] * 4]
    torch.manual_seed(0)
    found = [torch.randn(one.weight.shape, device=DEVICE).to(kind) for one, kind in zip(ours, kinds, strict=True)]
    for update, tensors in ((OnePassAdamW(ours, rule).update, ours), (twin(plain, rule), plain)):
        one, zero = torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE)
        update(found, torch.zeros(len(tensors), device=DEVICE), rate=1e-2, scale=one, skip=zero, seed=1)
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b.master, a.master, rtol=1e-5, atol=1e-6)


def test_gradients_at_odd_addresses_are_read_rightly() -> None:
    from mftcoder.kernels.adamw_triton import OnePassAdamW

    rule = AdamWRule(0.9, 0.999, 1e-8)
    ours, plain = (weights(torch.bfloat16, drawn=False, device=DEVICE) for _ in range(2))
    odd = [torch.randn(one.weight.numel() + 1, device=DEVICE).bfloat16()[1:].view(one.weight.shape) for one in ours]
    for update, tensors in ((OnePassAdamW(ours, rule).update, ours), (twin(plain, rule), plain)):
        steps = torch.zeros(len(tensors), device=DEVICE)
        one, zero = torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE)
        update(odd, steps, rate=1e-2, scale=one, skip=zero, seed=1)
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b.master, a.master, rtol=1e-5, atol=1e-6)
