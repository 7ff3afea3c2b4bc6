"""A frozen layer in e4m3; full fine-tuning with torchao's fp8 products, rounded as on a GPU and multiplied in float32."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mftcoder.config.load import parse_config
from mftcoder.errors import ConfigError, ModelError
from mftcoder.kernels.linear.fp8 import round_rows
from mftcoder.models.layers.adapters import restore, save_weights
from mftcoder.models.layers.fp8 import Fp8Linear, check_recipe, multiply_in_fp8

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="no torchao")
RECIPES = ["tensorwise", "rowwise"]
IDS = (torch.arange(120).reshape(3, 40) * 7) % 96


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        use_cache=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).train()


def in_fp8(whole: Any, recipe: str) -> Any:
    other = copy.deepcopy(whole)
    multiply_in_fp8(other, recipe, emulate=True)
    return other


def step(one: Any) -> float:
    one.zero_grad()
    loss = one(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return float(loss.detach())


@needs_torchao
@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_and_gradients_stay_near_those_of_bfloat16(recipe: str) -> None:
    whole = model()
    rounded = in_fp8(whole, recipe)
    assert step(rounded) == pytest.approx(step(whole), rel=0.01)
    assert not torch.equal(rounded(input_ids=IDS).logits, whole(input_ids=IDS).logits)
    for (name, ours), theirs in zip(rounded.named_parameters(), whole.parameters(), strict=True):
        assert torch.cosine_similarity(ours.grad.flatten().float(), theirs.grad.flatten().float(), 0) > 0.97, name


@needs_torchao
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_steps_lead_to_the_loss_of_bfloat16(recipe: str) -> None:
    curves = []
    for one in (whole := model(), in_fp8(whole, recipe)):
        optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3, weight_decay=0.0)
        curves.append([])
        for _ in range(20):
            curves[-1].append(step(one))
            optimizer.step()
    (first, *_, last), (*_, rounded) = curves
    assert last < 0.9 * first and rounded == pytest.approx(last, rel=0.05)


@needs_torchao
def test_the_parameters_do_not_change_and_the_head_is_not_rounded(tmp_path: Path) -> None:
    whole = model()
    names, head = [name for name, _ in whole.named_parameters()], whole.lm_head
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    multiply_in_fp8(whole, "rowwise", emulate=True)
    assert [name for name, _ in whole.named_parameters()] == names
    assert whole.lm_head is head and type(head) is torch.nn.Linear
    save_weights(whole, tmp_path)
    for weight in whole.parameters():
        torch.nn.init.zeros_(weight)
    restore(whole, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in whole.state_dict().items())


@needs_torchao
def test_layers_in_modules_to_not_convert_are_not_rounded() -> None:
    whole = model()
    partly = copy.deepcopy(whole)
    multiply_in_fp8(partly, "rowwise", emulate=True, kept=("mlp", "layers.0"))
    plain = {path for path, layer in partly.named_modules() if type(layer) is torch.nn.Linear}
    attention = {f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"}
    assert {path for path, layer in whole.named_modules() if isinstance(layer, torch.nn.Linear)} - plain == attention
    with pytest.raises(
        ModelError, match="modules_to_not_convert: experts: no layer that would be converted has this in its path"
    ):
        multiply_in_fp8(partly, "rowwise", emulate=True, kept=("experts",))


@needs_torchao
def test_a_model_without_layers_for_fp8_is_refused() -> None:
    odd = GPT2LMHeadModel(GPT2Config(n_embd=36, n_layer=1, n_head=4, vocab_size=100, bos_token_id=0, eos_token_id=0))
    with pytest.raises(ModelError, match="no linear layer whose sizes are multiples of 16"):
        multiply_in_fp8(odd, "rowwise", emulate=True)


def test_without_torchao_the_error_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_recipe(None)
    with pytest.raises(
        ModelError, match=r"needs torchao, which is not installed. Install it with: pip install 'mftcoder\[fp8\]'"
    ):
        check_recipe("rowwise")


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({}, "With LoRA set model.quantization: fp8 instead, or adapter.type: full"),
        (
            {"adapter": "full", "model": {"model_name_or_path": "m", "dtype": "float32"}},
            "train.fp8_recipe needs bfloat16",
        ),
    ],
)
def test_unsupported_combinations_are_refused_with_an_alternative(sections: dict[str, Any], problem: str) -> None:
    raw = {"model": "m", "tasks": {"a": "/data/a"}, "output_dir": "/run", "train": {"fp8_recipe": "rowwise"}}
    with pytest.raises(ConfigError, match=problem):
        parse_config({**raw, **sections}, origin="x")


@pytest.mark.parametrize("biased", [False, True])
def test_output_and_gradient_of_a_frozen_layer_are_those_of_the_rounded_factors(biased: bool) -> None:
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
