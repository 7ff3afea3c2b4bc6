"""The plain twin of the one-pass AdamW equals torch's AdamW; stochastic rounding is right on average."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mftcoder.kernels.adamw import AdamWRule, AdamWTensors, adamw_in_torch, stochastically_rounded

SHAPES = [(70, 70), (4096,), (3,), (5000,)]
Update = Any  # OnePassAdamW.update or its twin


def weights(dtype: torch.dtype, *, drawn: bool, device: str = "cpu") -> list[AdamWTensors]:
    torch.manual_seed(0)
    made = []
    for number, shape in enumerate(SHAPES):
        weight = torch.randn(shape).to(device, dtype)
        master = weight if drawn or dtype == torch.float32 else weight.float()
        moments = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        made.append(AdamWTensors(weight, master, *moments, decay=0.1 if number % 2 else 0.0))
    return made


def gradients(step: int, dtype: torch.dtype) -> list[Tensor | None]:
    """The third weight gets no gradient in even steps, like a rare expert."""
    torch.manual_seed(100 + step)
    return [torch.randn(shape).to(dtype) if n != 2 or step % 2 else None for n, shape in enumerate(SHAPES)]


def run(update: Update, tensors: Sequence[AdamWTensors], dtype: torch.dtype) -> Tensor:
    steps = torch.zeros(len(tensors), device=tensors[0].weight.device)
    for step in range(6):  # step 3 changes nothing
        found = [None if g is None else g.to(steps.device) for g in gradients(step, dtype)]
        scale, skip = torch.tensor(0.7, device=steps.device), torch.tensor(float(step == 3), device=steps.device)
        update(found, steps, rate=1e-2, scale=scale, skip=skip, seed=step)
    return steps


def twin(tensors: Sequence[AdamWTensors], rule: AdamWRule) -> Update:
    return lambda found, steps, **keywords: adamw_in_torch(tensors, found, steps, rule, **keywords)


def test_the_plain_twin_equals_torchs_adamw() -> None:
    rule = AdamWRule(0.9, 0.999, 1e-8)
    ours = weights(torch.float32, drawn=False)
    run(twin(ours, rule), ours, torch.float32)
    theirs = [torch.nn.Parameter(one.weight.clone()) for one in weights(torch.float32, drawn=False)]
    groups = [{"params": [p], "weight_decay": 0.1 if n % 2 else 0.0} for n, p in enumerate(theirs)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for step in (0, 1, 2, 4, 5):
        for parameter, gradient in zip(theirs, gradients(step, torch.float32), strict=True):
            parameter.grad = None if gradient is None else gradient * 0.7
        optimizer.step()
    for one, parameter in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.weight, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_stochastic_rounding_is_right_on_average_and_exact_for_representable_numbers() -> None:
    between = torch.full((40_000,), 1 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
    rounded = stochastically_rounded(between, seed=3, index=1)
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean().item() == pytest.approx(1 + 2**-9, abs=1e-4)
    exact = torch.tensor([1.0, -2.5, 0.0, float("inf")])
    assert torch.equal(stochastically_rounded(exact, seed=0, index=0), exact)
