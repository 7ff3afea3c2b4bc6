from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.errors import ModelError
from mftcoder.models.layers.adapters import (
    attach,
    load_adapter,
    restore,
    save_adapter,
    trainable_parameters,
)
from mftcoder.models.layers.lora import linear_names
from mftcoder.models.layers.lora_forward import PlainLora
from mftcoder.models.loading.load import load_model

IDS = torch.arange(3, 23)[None]


def fresh(folder: Path, dtype: str = "float32") -> Any:
    config = ModelConfig(model_name_or_path=str(folder), dtype=dtype)
    return load_model(config, attn_implementation="sdpa", device="cpu")


def stirred(model: Any) -> Any:
    """Random LoRA weights, so that they have an effect."""
    torch.manual_seed(1)
    for _, parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_full_trains_every_weight(tiny_llama_dir: Path) -> None:
    model = attach(fresh(tiny_llama_dir), AdapterConfig(type="full"))
    assert sum(p.numel() for _, p in trainable_parameters(model)) == model.num_parameters()


def test_a_new_adapter_changes_no_logit(tiny_llama_dir: Path) -> None:
    before = fresh(tiny_llama_dir)(IDS).logits
    assert torch.equal(attach(fresh(tiny_llama_dir), AdapterConfig()).eval()(IDS).logits, before)


def test_all_linear_adapts_every_linear_layer_except_the_head(tiny_llama_dir: Path) -> None:
    model = attach(fresh(tiny_llama_dir), AdapterConfig())
    touched = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in trainable_parameters(model)}
    assert touched == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


DEEPSEEK = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "topk_group": 1, "n_group": 1, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def deepseek(version: str) -> Any:
    """A dense layer, then a layer of experts with a shared expert, which has the names of the dense layer's MLP."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(f"deepseek_{version}", **DEEPSEEK))


def adapted(model: Any) -> set[str]:
    """Paths of the modules with LoRA weights."""
    names = (name for name, _ in trainable_parameters(model))
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names}


# Stock peft 0.21 sets ranks of fused experts itself, applies them, and then misses them among the modules.
@pytest.mark.filterwarnings(r"ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_all_linear_adapts_dense_layers_and_shared_experts_beside_fused_ones(version: str, tmp_path: Path) -> None:
    model = deepseek(version)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.shared_experts.up_proj"} <= linear
    model = stirred(attach(model, AdapterConfig(lora_rank=4)))
    experts = "model.layers.1.mlp.experts"
    assert adapted(model) == linear | {experts, f"{experts}.base_layer", "model.layers.1.mlp.gate"}
    save_adapter(model, tmp_path)
    stock = PeftModel.from_pretrained(deepseek(version), tmp_path).eval()
    assert torch.equal(stock(IDS).logits, model(IDS).logits)
    resumed = attach(deepseek(version), AdapterConfig(lora_rank=4)).eval()
    restore(resumed, tmp_path)
    assert torch.equal(resumed(IDS).logits, model(IDS).logits)


def test_a_name_beside_fused_experts_reaches_them_and_a_path_only_its_layer() -> None:
    paths = {f"model.layers.{layer}.down_proj" for layer in ("0.mlp", "1.mlp.shared_experts")}
    by_name = adapted(attach(deepseek("v2"), AdapterConfig(lora_target=("down_proj",))))
    assert by_name == paths | {"model.layers.1.mlp.experts"}
    target = ("shared_experts.up_proj", "q_proj")
    by_path = adapted(attach(deepseek("v2"), AdapterConfig(lora_target=target)))
    assert by_path == {
        "model.layers.1.mlp.shared_experts.up_proj",
        *(f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)),
    }


def test_unsupported_lora_weights_are_an_error_of_one_line(tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"DeepseekV2ForCausalLM cannot be adapted like this: .*lora_dropout"):
        attach(deepseek("v2"), AdapterConfig(lora_dropout=0.1))
    with pytest.raises(ModelError, match=r"mlp.gate_proj has the name of a fused expert.*remove model.quantization"):
        attach(deepseek("v2"), AdapterConfig(lora_target=("up_proj", "gate_proj")), quantization="4bit")
    assert attach(fresh(tiny_llama_dir), AdapterConfig(), quantization="4bit")


def test_only_named_targets_train_and_the_base_does_not(tiny_llama_dir: Path) -> None:
    model = attach(fresh(tiny_llama_dir), AdapterConfig(lora_target=("q_proj", "self_attn.v_proj")))
    names = [name for name, _ in trainable_parameters(model)]
    assert len(names) == 2 * 2 * 2  # layers, targets, A and B
    assert all(".lora_" in name and ("q_proj" in name or "v_proj" in name) for name in names)


def test_an_unknown_target_lists_the_models_layers(tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelError) as caught:
        attach(fresh(tiny_llama_dir), AdapterConfig(lora_target=("q_pro", "v_proj")))
    assert str(caught.value).startswith("adapter.lora_target: no linear layer is named 'q_pro'. Did you mean 'q_proj'?")
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in str(caught.value)
    assert linear_names(fresh(tiny_llama_dir))[0] == "down_proj"


def test_lora_weights_have_the_dtype_of_the_base(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = attach(fresh(tiny_llama_dir, "bfloat16"), AdapterConfig())
    assert {parameter.dtype for _, parameter in trainable_parameters(model)} == {torch.bfloat16}
    save_adapter(model, tmp_path)
    loaded = load_adapter(fresh(tiny_llama_dir, "bfloat16"), tmp_path, trainable=True)
    assert {parameter.dtype for _, parameter in trainable_parameters(loaded)} == {torch.bfloat16}


# Stock peft 0.21 asks transformers 5.23 for an attribute that it has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapter", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_a_saved_adapter_loads_with_the_same_logits(tiny_llama_dir: Path, tmp_path: Path, adapter: dict) -> None:
    model = stirred(attach(fresh(tiny_llama_dir), AdapterConfig(lora_rank=4, **adapter)))
    save_adapter(model, tmp_path)
    expected = model(IDS).logits
    assert torch.equal(load_adapter(fresh(tiny_llama_dir), tmp_path).eval()(IDS).logits, expected)
    stock = PeftModel.from_pretrained(fresh(tiny_llama_dir), tmp_path).eval()(IDS).logits
    torch.testing.assert_close(stock, expected, rtol=1e-6, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_loaded_adapter_can_train_on(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(attach(fresh(tiny_llama_dir), AdapterConfig()), tmp_path)
    assert not list(trainable_parameters(load_adapter(fresh(tiny_llama_dir), tmp_path)))
    assert list(trainable_parameters(load_adapter(fresh(tiny_llama_dir), tmp_path, trainable=True)))


def test_an_adapter_folder_without_weights_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(attach(fresh(tiny_llama_dir), AdapterConfig()), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not an adapter folder: adapter_model.safetensors is missing"):
        load_adapter(fresh(tiny_llama_dir), tmp_path)


def test_a_damaged_adapter_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(attach(fresh(tiny_llama_dir), AdapterConfig()), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(fresh(tiny_llama_dir), tmp_path)


def test_pefts_own_forward_can_be_chosen(tiny_llama_dir: Path) -> None:
    kinds = []
    for peft_forward in (False, True):
        model = attach(fresh(tiny_llama_dir), AdapterConfig(peft_forward=peft_forward))
        kinds.append(any(isinstance(module, PlainLora) for module in model.modules()))
    assert kinds == [True, False]


def test_embedding_and_head_train_whole_beside_the_lora_weights(tiny_llama_dir: Path) -> None:
    before = fresh(tiny_llama_dir)(IDS).logits
    model = attach(fresh(tiny_llama_dir), AdapterConfig(train_embeddings=True)).eval()
    assert torch.equal(model(IDS).logits, before)
    whole = [name for name, _ in trainable_parameters(model) if "lora_" not in name]
    assert [name.split(".modules_to_save")[0].rpartition(".")[2] for name in whole] == ["embed_tokens", "lm_head"]
    stirred(model)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, before)


def test_a_head_cannot_have_lora_weights_and_train_whole(tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="lm_head is trained whole with"):
        attach(fresh(tiny_llama_dir), AdapterConfig(train_embeddings=True, lora_target=("q_proj", "lm_head")))


def test_a_shared_weight_that_peft_would_not_keep_shared_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"transformer.wte shares its weight with the output head, and peft keeps only"
    ):
        attach(fresh(tmp_path), AdapterConfig(train_embeddings=True))
