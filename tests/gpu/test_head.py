"""The fused head on the device equals the formula in float64: loss and both gradients, with and without a soft cap."""

import pytest
import torch
from torch import Tensor, nn

from mftcoder.kernels import cross_entropy
from mftcoder.kernels.cross_entropy import weighted_cross_entropy

ROWS, HIDDEN = 70, 64
BOUND = {torch.float32: 3e-5, torch.bfloat16: 0.02}


def written_out(hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return (torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0] * -coefficients).sum()


@pytest.mark.parametrize("vocabulary", [509, 4096, 32_003])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_loss_and_both_gradients_equal_the_formula(
    device: torch.device, dtype: torch.dtype, softcap: float | None, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, device.type, 4 * vocabulary * 30)  # three chunks, the last not full
    torch.manual_seed(0)
    drawn = torch.randn(ROWS, HIDDEN), torch.randn(vocabulary, HIDDEN) / 4
    targets, coefficients = torch.randint(0, vocabulary, (ROWS,)), torch.rand(ROWS)
    exact = [part.to(dtype).double().requires_grad_() for part in drawn]
    expected = written_out(*exact, targets, coefficients.double(), softcap)
    wanted = torch.autograd.grad(expected, exact)

    hidden = drawn[0].to(device, dtype).requires_grad_()
    head = nn.Linear(HIDDEN, vocabulary, bias=False, device=device, dtype=dtype)
    head.weight.data.copy_(drawn[1])
    on_device = targets.to(device), coefficients.to(device)
    objective, losses = weighted_cross_entropy(hidden, head, *on_device, softcap=softcap, scale=1.0)
    found = torch.autograd.grad(3.0 * objective, [hidden, head.weight])

    assert objective.item() == pytest.approx(expected.item(), rel=BOUND[dtype])
    assert (losses.cpu() * coefficients).sum().item() == pytest.approx(expected.item(), rel=BOUND[dtype])
    for got, want in zip(found, wanted, strict=True):
        assert ((got.cpu().double() - 3.0 * want).norm() / (3.0 * want.norm())).item() < BOUND[dtype]
