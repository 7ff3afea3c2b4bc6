"""Recomputation changes how much is kept for the backward pass, but no bit of the results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError
from mftcoder.kernels import attention
from mftcoder.models.gpu_memory.recompute import Recomputation, decoder_layers, recompute_layers
from mftcoder.models.layers.adapters import attach

attention.register()
WAYS = [Recomputation(selective=True), Recomputation(0.5, True), Recomputation(1.0)]
PACKED = {"segment_lengths": ((20, 12), (32,))}


def llama(**settings: Any) -> Any:
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).train()


def results(model: Any, how: Recomputation, *, backend: str | None = None, **keywords: Any) -> list[Tensor]:
    recompute_layers(decoder_layers(model), how)
    for layer in decoder_layers(model) if backend else []:
        layer.compile(backend=backend)
    torch.manual_seed(1)
    ids = torch.arange(64).reshape(2, 32)
    output = model.model(input_ids=ids, position_ids=torch.arange(32)[None], use_cache=False, **keywords)
    output.last_hidden_state.square().sum().backward()
    return [output.last_hidden_state.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize(
    ("settings", "keywords"),
    [
        ({"attn_implementation": "segments"}, PACKED),
        ({"attn_implementation": "sdpa"}, {}),
        ({"attn_implementation": "sdpa", "attention_dropout": 0.2}, {}),
        ({"attn_implementation": "eager", "attention_dropout": 0.2}, {}),
    ],
    ids=["packed", "sdpa", "sdpa with dropout", "eager with dropout"],
)
def test_the_results_are_bit_equal(settings: dict[str, Any], keywords: dict[str, Any], how: Recomputation) -> None:
    expected = results(llama(**settings), Recomputation(), **keywords)
    found = results(llama(**settings), how, **keywords)
    assert len(found) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_lora_is_bit_equal_though_it_accumulates_in_place(how: Recomputation) -> None:
    found = []
    for way in (Recomputation(), how):
        torch.manual_seed(2)
        adapted = attach(llama(attn_implementation="sdpa"), AdapterConfig(lora_rank=4))
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight)
        found.append(results(adapted.get_base_model(), way))
    assert len(found[0]) == 1 + 2 * 2 * 7
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("default")  # the compiler imports and touches much that torch itself warns of
@pytest.mark.parametrize("how", [WAYS[0], WAYS[2]], ids=str)
def test_compiled_layers_are_bit_equal(how: Recomputation) -> None:
    """The partitioner of the compiler decides what is kept; its kernels are left to the slow tests of training."""
    torch._dynamo.reset()
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    backend, settings = "aot_eager_decomp_partition", {"attn_implementation": "segments"}
    expected = results(llama(**settings), Recomputation(), backend=backend, **PACKED)
    torch._dynamo.reset()
    found = results(llama(**settings), how, backend=backend, **PACKED)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Layer(nn.Module):
    """One product, changed in place by `change` before or after somebody reads it."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor], *, read_first: bool):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.change, self.read_first = change, read_first

    def forward(self, x: Tensor) -> Tensor:
        product = _Accumulated.apply(x, self.weight, self.change, self.read_first)
        return torch.tanh(product)


class _Accumulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, change: Any, read_first: bool) -> Tensor:
        product = x @ weight
        before = product.exp().sum() * 0 if read_first else 0.0
        ctx.save_for_backward(x, weight)
        return change(product, x) + before

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return slopes[0] @ weight.t() + slopes[0], x.t() @ slopes[0], None, None


def of_layer(change: Callable[[Tensor, Tensor], Tensor], how: Recomputation, *, read_first: bool = False) -> list[Any]:
    layer = Layer(change, read_first=read_first)
    recompute_layers([layer], how)
    x = torch.arange(32.0).reshape(4, 8).div(20).requires_grad_(True)
    layer(x).sum().backward()
    return [x.grad, layer.weight.grad]


@pytest.mark.parametrize("change", [lambda p, x: p.add_(x), lambda p, x: p.addmm_(x, torch.eye(8))])
def test_an_in_place_sum_in_a_products_memory_is_not_repeated(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    plain, selective = of_layer(change, Recomputation()), of_layer(change, Recomputation(selective=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, selective, strict=True))


def test_a_change_of_a_result_that_was_read_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be recomputed selectively"):
        of_layer(lambda p, x: p.add_(x), Recomputation(selective=True), read_first=True)


@pytest.mark.parametrize("setting", [False, "selective", 0.25, True])
def test_a_setting_converts_to_a_recomputation_and_back(setting: bool | float | str) -> None:
    assert Recomputation.of(setting).setting == setting


def test_a_fraction_recomputes_the_first_layers_completely_and_the_others_selectively() -> None:
    how = Recomputation.of(0.25)
    assert (how.whole_layers(28), how.selective) == (7, True)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="layers were not found"):
        recompute_layers([], Recomputation(1.0))
