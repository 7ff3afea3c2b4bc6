"""The function of a group of LoRA layers: its gradients, what it skips, and its shapes without a GPU."""

import pytest
import torch
from torch import Tensor

from mftcoder.kernels.linear.frozen import FrozenWeight
from mftcoder.kernels.linear.lora import LoraWeights, group_backward, group_forward, lora_linear

ABSENT = "cuda" if torch.version.cuda else "meta"  # fake CUDA tensors need a build that knows the device


def layers(ranks: tuple[int, ...], outs: tuple[int, ...], width: int = 12, **options: object) -> list[LoraWeights]:
    torch.manual_seed(0)
    made = []
    for number, (rank, out) in enumerate(zip(ranks, outs, strict=True)):
        weight, a, b, bias = (
            torch.randn(*shape, **options) for shape in ((out, width), (rank, width), (out, rank), (out,))
        )  # type: ignore[call-overload]
        frozen = FrozenWeight("plain", (weight,), bias if number == 0 else None)
        made.append(LoraWeights(a.requires_grad_(), b.requires_grad_(), frozen))
    return made


@pytest.mark.parametrize(("ranks", "outs"), [((3,), (5,)), ((3, 3, 3), (8, 4, 4)), ((1, 5), (7, 2))])
def test_all_gradients_are_the_derivatives(ranks: tuple[int, ...], outs: tuple[int, ...]) -> None:
    group = layers(ranks, outs, dtype=torch.float64)
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *trained: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(trained[::2], trained[1::2], group, strict=True)
        return lora_linear(x, [LoraWeights(a, b, layer.frozen) for a, b, layer in pairs], 1.5)

    trained = [tensor for layer in group for tensor in (layer.a, layer.b)]
    assert torch.autograd.gradcheck(function, (x, *trained))


def test_an_input_without_gradient_and_unused_outputs_cost_nothing() -> None:
    first, second = layers((3, 3), (5, 6))
    y, _ = lora_linear(torch.randn(4, 12), [first, second], 1.0)
    y.sum().backward()
    assert first.a.grad is not None and first.b.grad is not None
    assert second.a.grad is None and second.b.grad is None


def test_the_weights_of_a_group_have_one_representation() -> None:
    first, second = layers((3, 3), (5, 6))
    other = LoraWeights(second.a, second.b, FrozenWeight("fp8", second.frozen.tensors))
    with pytest.raises(AssertionError):
        lora_linear(torch.randn(4, 12), [first, other], 1.0)


def test_shapes_and_dtypes_of_both_passes_without_a_gpu() -> None:
    """Autograd itself needs the device, but the two passes that it calls do not."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        group = layers((32, 32, 32), (1536, 256, 256), width=1536, dtype=torch.bfloat16, device=ABSENT)
        tensors = [(layer.a, layer.b, layer.frozen.bias, *layer.frozen.tensors) for layer in group]
        x = torch.empty(4096, 1536, dtype=torch.bfloat16, device=ABSENT)
        with torch.no_grad():
            outputs, inner = group_forward(x, "plain", 2.0, tensors)
            slopes = [torch.empty_like(y) for y in outputs]
            slope_x, slopes_a, slopes_b = group_backward(x, inner, slopes, "plain", 2.0, tensors, with_x=True)
    assert slope_x is not None and slope_x.shape == x.shape and inner.shape == (4096, 96)
    for layer, a, b, y in zip(group, slopes_a, slopes_b, outputs, strict=True):
        assert a is not None and b is not None and (a.shape, b.shape) == (layer.a.shape, layer.b.shape)
        assert {tensor.dtype for tensor in (a, b, y)} == {torch.bfloat16}
        assert {tensor.device.type for tensor in (a, b, y)} == {ABSENT}
