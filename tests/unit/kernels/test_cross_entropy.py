"""The chunked, weighted cross entropy equals the formula, and so do its gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mftcoder.kernels import cross_entropy
from mftcoder.kernels.cross_entropy import weighted_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", 4 * 31 * 5)  # five rows of 31 logits a chunk


def inputs(rows: int = 13) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(1)
    head = nn.Linear(8, 31, bias=False)
    hidden = torch.randn(rows, 8, requires_grad=True)
    return hidden, head, torch.randint(0, 31, (rows,)), torch.rand(rows)


def written_out(
    hidden: Tensor, head: nn.Module, targets: Tensor, coefficients: Tensor, softcap: float | None
) -> Tensor:
    logits = head(hidden)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return (torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0] * -coefficients).sum()


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_value_and_gradients_equal_the_formula(softcap: float | None) -> None:
    hidden, head, targets, coefficients = inputs()
    expected = torch.autograd.grad(written_out(hidden, head, targets, coefficients, softcap), [hidden, head.weight])
    objective, losses = weighted_cross_entropy(hidden, head, targets, coefficients, softcap=softcap, scale=1.0)
    torch.testing.assert_close(objective, written_out(hidden, head, targets, coefficients, softcap))
    torch.testing.assert_close((losses * coefficients).sum(), objective.detach())
    for got, want in zip(torch.autograd.grad(3.0 * objective, [hidden, head.weight]), expected, strict=True):
        torch.testing.assert_close(got, 3.0 * want)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets, coefficients = inputs()
    head.requires_grad_(False)
    weighted_cross_entropy(hidden, head, targets, coefficients, softcap=None, scale=1.0)[0].backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_no_trained_token_gives_zero_not_nan() -> None:
    hidden, head, targets, coefficients = inputs(rows=0)
    for softcap in (None, 5.0):
        objective, losses = weighted_cross_entropy(hidden, head, targets, coefficients, softcap=softcap, scale=1.0)
        assert objective.item() == 0.0 and losses.numel() == 0


def test_a_large_logit_does_not_overflow() -> None:
    hidden, head, targets, coefficients = inputs()
    objective, _ = weighted_cross_entropy(hidden * 1e4, head, targets, coefficients, softcap=None, scale=1.0)
    assert torch.isfinite(objective)


def test_half_precision_losses_are_summed_in_float32() -> None:
    hidden, head, targets, coefficients = inputs()
    half = nn.Linear(8, 31, bias=False, dtype=torch.bfloat16)
    half.load_state_dict(head.state_dict())
    _, losses = weighted_cross_entropy(hidden.bfloat16(), half, targets, coefficients, softcap=None, scale=1.0)
    assert losses.dtype == torch.float32


def test_without_gradients_the_head_is_multiplied_once() -> None:
    """The head of a fully trained model needs a gradient, but validation does not: 2 N H V operations, not 6."""
    hidden, head, targets, coefficients = inputs()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective, losses = weighted_cross_entropy(hidden, head, targets, coefficients, softcap=None, scale=1.0)
    assert counter.get_total_flops() == 2 * 13 * 8 * 31
    torch.testing.assert_close(objective, written_out(hidden, head, targets, coefficients, None).detach())
    torch.testing.assert_close((losses * coefficients).sum(), objective)
