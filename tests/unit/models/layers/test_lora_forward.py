"""Plain LoRA layers give peft's results without its forward; other layers keep peft's forward, in any order of calls."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)

from mftcoder.models.layers import lora_forward
from mftcoder.models.layers.lora_forward import InputGroup, PlainLora, kept_by_peft, speed_up

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2 with biases, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "phi3 with fused layers": Phi3Config(**SIZES),
    "cohere with parallel blocks": CohereConfig(**SIZES),
    "gpt2 with transposed layers": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1),
}  # fmt: skip
IDS = torch.arange(40)[None] % 64


@contextmanager
def stock_peft() -> Iterator[None]:
    """Used directly, peft gives warnings that `adapters.attach` suppresses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


def adapted(config: PretrainedConfig, *, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """A random model with random LoRA weights and peft's own forward."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    base.config.use_cache = False
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    settings["fan_in_fan_out"] = isinstance(config, GPT2Config)
    with stock_peft():
        model = get_peft_model(base, LoraConfig(**{**settings, **lora}), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def sped_up(model: Any) -> Any:
    other = copy.deepcopy(model)
    speed_up(other)
    return other


def loss_and_gradients(model: Any) -> dict[str, Tensor]:
    """The gradients of one step over IDS, without weights that have none."""
    model.zero_grad(set_to_none=True)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **found}


def farthest(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to its norm."""
    assert expected.keys() == found.keys()
    return max(((expected[name] - found[name]).norm() / expected[name].norm()).item() for name in expected)


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of layers of each computation, in order."""
    counts: list[int] = []
    original = lora_forward.lora_linear

    def counted(x: Tensor, layers: Any, scale: float) -> tuple[Tensor, ...]:
        counts.append(len(layers))
        return original(x, layers, scale)

    monkeypatch.setattr(lora_forward, "lora_linear", counted)
    return counts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=["f64", "f32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_pefts(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(FAMILIES[family], dtype=dtype)
    ours = sped_up(model)
    assert not list(kept_by_peft(ours))
    assert farthest(loss_and_gradients(model), loss_and_gradients(ours)) < tolerance


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["k_proj"], ["gate_proj", "down_proj"], ["o_proj", "up_proj", "lm_head"]]
)
def test_any_choice_of_targets_equals_pefts(targets: list[str]) -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64, target_modules=targets)
    assert farthest(loss_and_gradients(model), loss_and_gradients(sped_up(model))) < 1e-13


def test_rank_stabilized_scaling_and_separate_ranks_equal_pefts() -> None:
    lora = {"use_rslora": True, "rank_pattern": {"q_proj": 2, "up_proj": 8}, "alpha_pattern": {"k_proj": 3}}
    model = adapted(FAMILIES["llama"], dtype=torch.float64, **lora)
    assert farthest(loss_and_gradients(model), loss_and_gradients(sped_up(model))) < 1e-13


def test_layers_with_the_same_input_are_computed_together(computations: list[int]) -> None:
    loss_and_gradients(sped_up(adapted(FAMILIES["llama"])))
    assert computations == [3, 1, 2, 1] * 2  # q k v, o, gate up, down of two layers


def test_the_input_of_a_group_is_kept_once_and_its_additions_in_the_frozen_products_memory() -> None:
    ours = sped_up(adapted(FAMILIES["llama"]))
    attention = ours.get_base_model().model.layers[0].self_attn
    x = torch.randn(2, 20, 32, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    parameters = {p.data_ptr() for p in ours.parameters()}
    activations = {(t.data_ptr(), tuple(t.shape)) for t in kept if t.data_ptr() not in parameters}
    assert sorted(shape for _, shape in activations) == [(40, 12), (40, 32)]  # x A^T of three layers, x
    assert x.data_ptr() in {pointer for pointer, _ in activations}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2 with biases, tied", "gpt2 with transposed layers"])
def test_what_is_saved_is_read_by_stock_peft_and_merged_by_it(family: str, tmp_path: Path) -> None:
    ours = sped_up(adapted(FAMILIES[family]))
    expected = ours(input_ids=IDS).logits
    ours.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]))
    stock = PeftModel.from_pretrained(base, tmp_path)
    assert not any(isinstance(module, PlainLora) for module in stock.modules())
    torch.testing.assert_close(stock(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stock.merge_and_unload()(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_merging_unmerging_and_disabling_work_as_in_peft() -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64)
    ours = sped_up(model)
    expected = ours(input_ids=IDS).logits
    ours.merge_adapter()
    torch.testing.assert_close(ours(input_ids=IDS).logits, expected)
    ours.unmerge_adapter()
    torch.testing.assert_close(ours(input_ids=IDS).logits, expected)
    with ours.disable_adapter(), model.disable_adapter():
        assert torch.equal(ours(input_ids=IDS).logits, model(input_ids=IDS).logits)
    torch.testing.assert_close(ours(input_ids=IDS).logits, expected)
    torch.testing.assert_close(ours.merge_and_unload()(input_ids=IDS).logits, expected)


def test_one_merged_layer_of_a_group_does_not_disturb_the_others() -> None:
    ours = sped_up(adapted(FAMILIES["llama"], dtype=torch.float64))
    expected = ours(input_ids=IDS).logits
    ours.get_base_model().model.layers[0].self_attn.k_proj.merge()
    torch.testing.assert_close(ours(input_ids=IDS).logits, expected)


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ({"lora_dropout": 0.5}, "14 LoRA layers keep peft's slower forward: dropout"),
        ({"use_dora": True}, "14 LoRA layers keep peft's slower forward: DoRA or another variant of LoRA"),
        ({"lora_bias": True}, "14 LoRA layers keep peft's slower forward: a bias in the addition"),
        ({"bias": "all"}, "6 LoRA layers keep peft's slower forward: a base that trains"),  # the biases of q, k, v
    ],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_a_layer_that_is_not_plain_keeps_pefts_forward_with_a_line(lora: dict[str, Any], line: str) -> None:
    model = adapted(FAMILIES["qwen2 with biases, tied"], dtype=torch.float64, **lora)
    ours = sped_up(model)
    assert list(kept_by_peft(ours)) == [line]
    steps = []
    for one in (model, ours):
        torch.manual_seed(1)  # dropout draws the same
        steps.append(loss_and_gradients(one))
    assert farthest(*steps) < 1e-13


def test_adapted_experts_keep_pefts_forward() -> None:
    config = MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)
    lora = {"target_modules": ["q_proj", "k_proj", "v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    model = adapted(config, **lora)
    ours = sped_up(model)
    assert list(kept_by_peft(ours)) == ["2 LoRA layers keep peft's slower forward: ParamWrapper over MixtralExperts"]
    assert farthest(loss_and_gradients(model), loss_and_gradients(ours)) < 1e-5  # the routed order of the sums differs


def test_a_second_adapter_is_computed_by_peft() -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64)
    ours = sped_up(model)
    for one in (model, ours):
        torch.manual_seed(2)
        one.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        one.set_adapter("other")
    assert farthest(loss_and_gradients(model), loss_and_gradients(ours)) < 1e-13


def test_hooks_of_inner_layers_run_and_a_line_tells_their_cost() -> None:
    """DeepSpeed's ZeRO-3 gathers a layer's weight in such hooks."""
    ours = sped_up(adapted(FAMILIES["llama"]))
    q_proj, seen = ours.get_base_model().model.layers[0].self_attn.q_proj, []
    q_proj.base_layer.register_forward_pre_hook(lambda *_: seen.append("frozen"))
    q_proj.lora_A["default"].register_forward_hook(lambda *_: seen.append("A"))
    ours(input_ids=IDS)
    assert seen == ["frozen", "A"]
    assert list(kept_by_peft(ours)) == ["1 LoRA layers keep peft's slower forward: hooks on its inner layers"]


def test_whole_modules_that_train_beside_lora_change_nothing() -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64, modules_to_save=["lm_head", "embed_tokens"])
    ours = sped_up(model)
    assert not list(kept_by_peft(ours))
    expected = loss_and_gradients(model)
    assert any("modules_to_save" in name for name in expected)
    assert farthest(expected, loss_and_gradients(ours)) < 1e-13


def test_under_autocast_peft_casts() -> None:
    model = adapted(FAMILIES["llama"])
    ours = sped_up(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(input_ids=IDS).logits, ours(input_ids=IDS).logits)


# How the layers of a group find each other: whatever is called when, each call gives what peft's forward gives.

Calls = Callable[[Any, Tensor, Tensor], list[Tensor]]


def no_grad_first(layer: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    with torch.no_grad():
        first = layer.q_proj(x)
    return [first, layer.k_proj(x), layer.v_proj(x)]


@torch.no_grad()
def changed_between(layer: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    outputs = [layer.q_proj(x)]
    layer.v_proj.lora_B["default"].weight.mul_(2)
    return [*outputs, layer.k_proj(x), layer.v_proj(x)]


def input_changed_in_place(layer: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    x = x * 1
    outputs = [layer.q_proj(x).detach()]
    x.add_(1)
    return [*outputs, layer.k_proj(x), layer.v_proj(x)]


def scale_changed(layer: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    outputs = [layer.q_proj(x)]
    layer.k_proj.set_scale("default", 3.0)
    return [*outputs, layer.k_proj(x), layer.v_proj(x), layer.q_proj(x)]


SEQUENCES: dict[str, Calls] = {
    "in order": lambda a, x, y: [a.q_proj(x), a.k_proj(x), a.v_proj(x)],
    "in another order": lambda a, x, y: [a.v_proj(x), a.q_proj(x), a.k_proj(x)],
    "only one": lambda a, x, y: [a.k_proj(x)],
    "two, then another input": lambda a, x, y: [a.q_proj(x), a.v_proj(x), a.q_proj(y), a.k_proj(y), a.v_proj(y)],
    "different inputs": lambda a, x, y: [a.q_proj(x), a.k_proj(y), a.v_proj(y), a.q_proj(y), a.k_proj(x), a.v_proj(x)],
    "one twice": lambda a, x, y: [a.q_proj(x), a.q_proj(x), a.k_proj(x), a.v_proj(x)],
    "all twice": lambda a, x, y: [layer(x) for layer in (a.q_proj, a.k_proj, a.v_proj) * 2],
    "equal inputs that are not the same": lambda a, x, y: [a.q_proj(x), a.k_proj(x.clone()), a.v_proj(x)],
    "without gradients first": no_grad_first,
    "an addition changed in between": changed_between,
    "the input changed in place": input_changed_in_place,
    "a scale changed in between": scale_changed,
}


@pytest.mark.parametrize("calls", SEQUENCES)
def test_each_call_equals_pefts_after_any_other_call(calls: str) -> None:
    results = []
    for model in (stock := adapted(FAMILIES["llama"], dtype=torch.float64), sped_up(stock)):
        layer = model.get_base_model().model.layers[0].self_attn
        torch.manual_seed(3)
        x, y = (torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True) for _ in range(2))
        outputs = SEQUENCES[calls](layer, x, y)
        if differentiable := [(n + 1) * out.square().sum() for n, out in enumerate(outputs) if out.requires_grad]:
            torch.stack(differentiable).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        inputs = {name: t.grad for name, t in (("x", x), ("y", y)) if t.grad is not None}
        results.append({**gradients, **inputs, **{str(n): out.detach() for n, out in enumerate(outputs)}})
    assert farthest(*results) < 1e-13


def test_layers_called_on_different_tensors_leave_their_group(computations: list[int]) -> None:
    ours = sped_up(adapted(FAMILIES["llama"]))
    layer = ours.get_base_model().model.layers[0].self_attn
    x, y = torch.randn(1, 5, 32), torch.randn(1, 5, 32)
    for _ in range(3):
        layer.q_proj(x), layer.k_proj(y), layer.v_proj(y)
    assert computations == [3, 1, 1, *[1, 1, 1] * 2]  # k and v are not brought together again: that costs speed only
    assert not any(group._input is not None for group in {layer.q_proj.group, layer.k_proj.group, layer.v_proj.group})


def test_nothing_waits_after_a_step() -> None:
    ours = sped_up(adapted(FAMILIES["llama"]))
    loss_and_gradients(ours)
    groups = {module.group for module in ours.modules() if isinstance(module, PlainLora)}
    assert groups and all(group._input is None and not any(w is not None for w in group._waiting) for group in groups)


def test_a_weight_with_an_unused_output_gets_no_gradient() -> None:
    layer = sped_up(adapted(FAMILIES["llama"])).get_base_model().model.layers[0].self_attn
    x = torch.randn(1, 5, 32)
    layer.q_proj(x).sum().backward()
    assert layer.q_proj.lora_A["default"].weight.grad is not None
    assert layer.k_proj.lora_A["default"].weight.grad is None
    assert layer.k_proj.lora_B["default"].weight.grad is None


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    ours = sped_up(adapted(FAMILIES["llama"]))
    before = ours(input_ids=IDS).logits
    other = copy.deepcopy(ours)
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            nn.init.zeros_(parameter)
    assert torch.equal(other(input_ids=IDS).logits, before)
    assert not torch.equal(ours(input_ids=IDS).logits, before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_get_the_same_gradients(reentrant: bool) -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64)
    ours = sped_up(model)
    expected = loss_and_gradients(model)
    for layer in ours.get_base_model().model.layers:
        forward = layer.forward
        layer.forward = lambda x, *a, forward=forward, **k: checkpoint(
            lambda x: forward(x, *a, **k), x, use_reentrant=reentrant
        )
    ours.enable_input_require_grads()
    assert farthest(expected, loss_and_gradients(ours)) < 1e-13


def test_several_backward_passes_through_one_forward_pass() -> None:
    model = adapted(FAMILIES["llama"], dtype=torch.float64)
    found = []
    for one in (model, sped_up(model)):
        logits = one(input_ids=IDS).logits
        parameters = [p for p in one.parameters() if p.requires_grad]
        halves = [
            torch.autograd.grad(part.square().sum(), parameters, retain_graph=True) for part in logits.chunk(2, 1)
        ]
        found.append({f"{half}.{n}": g for half, grads in enumerate(halves) for n, g in enumerate(grads)})
    assert farthest(*found) < 1e-13


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_compiled_layer_is_one_graph_and_gives_the_same(checkpointing: bool) -> None:
    """Without the compiler's code generation, which takes a minute and is tested in tests/gpu."""
    torch._dynamo.reset()
    model = adapted(FAMILIES["qwen2 with biases, tied"], dtype=torch.float64)
    ours = sped_up(model)
    expected = loss_and_gradients(model)
    loss_and_gradients(ours)
    ours.enable_input_require_grads()  # one graph for the first layer as well
    if checkpointing:
        ours.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        for layer in ours.get_base_model().model.layers:
            layer.compile(backend=counter, fullgraph=True)
        for _ in range(2):
            assert farthest(expected, loss_and_gradients(ours)) < 1e-13
    assert counter.frame_count == 1
    assert all(module.group._input is None for module in ours.modules() if isinstance(module, PlainLora))


@needs_bitsandbytes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.05)], ids=["f32", "bf16"])
def test_over_4_bits_the_results_equal_those_of_bitsandbytes(
    tiny_llama_dir: Path, dtype: torch.dtype, tolerance: float
) -> None:
    model = over_4_bits(tiny_llama_dir, dtype)
    ours = sped_up(model)
    assert not list(kept_by_peft(ours))
    assert farthest(loss_and_gradients(model), loss_and_gradients(ours)) < tolerance


@needs_bitsandbytes
def test_few_rows_over_4_bits_go_through_bitsandbytes_own_product(
    tiny_llama_dir: Path, computations: list[int]
) -> None:
    ours = sped_up(over_4_bits(tiny_llama_dir, torch.float32))
    ours(input_ids=IDS[:, :31])
    assert computations == []
    ours(input_ids=IDS[:, :32])
    assert computations == [3, 1, 2, 1] * 2


@needs_bitsandbytes
def test_8_bits_keep_pefts_forward(tiny_llama_dir: Path) -> None:
    model = over_bits(tiny_llama_dir, "8bit", torch.float32)
    ours = sped_up(model)
    assert list(kept_by_peft(ours)) == ["14 LoRA layers keep peft's slower forward: Linear8bitLt over Linear8bitLt"]
    assert farthest(loss_and_gradients(model), loss_and_gradients(ours)) == 0


def over_4_bits(folder: Path, dtype: torch.dtype) -> Any:
    return over_bits(folder, "4bit", dtype)


def over_bits(folder: Path, quantization: str, dtype: torch.dtype) -> Any:
    from mftcoder.models.loading.load import load_folder

    base = load_folder(folder, dtype=dtype, device="cpu", quantization=quantization)
    with stock_peft():
        settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter, dtype=dtype)
    return model


def test_a_group_may_have_one_layer() -> None:
    ours = sped_up(adapted(FAMILIES["llama"], target_modules=["q_proj"]))
    groups = [module.group for module in ours.modules() if isinstance(module, PlainLora)]
    assert all(isinstance(group, InputGroup) and len(group.layers) == 1 for group in groups)
