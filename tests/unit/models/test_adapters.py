from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.errors import ModelError
from mftcoder.models.adapters import attach, linear_names, load_adapter, save_adapter, trainable_parameters
from mftcoder.models.load import load_model

IDS = torch.arange(3, 23)[None]


def fresh(folder: Path, dtype: str = "float32") -> Any:
    config = ModelConfig(model_name_or_path=str(folder), dtype=dtype)
    return load_model(config, attn_implementation="sdpa", device="cpu")


def stirred(model: Any) -> Any:
    """Random additions, so that they matter."""
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


def test_all_linear_reaches_every_linear_layer_but_the_head(tiny_llama_dir: Path) -> None:
    model = attach(fresh(tiny_llama_dir), AdapterConfig())
    touched = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in trainable_parameters(model)}
    assert touched == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_only_named_targets_train_and_the_base_does_not(tiny_llama_dir: Path) -> None:
    model = attach(fresh(tiny_llama_dir), AdapterConfig(lora_target=("q_proj", "self_attn.v_proj")))
    names = [name for name, _ in trainable_parameters(model)]
    assert len(names) == 2 * 2 * 2  # layers, targets, A and B
    assert all(".lora_" in name and ("q_proj" in name or "v_proj" in name) for name in names)


def test_an_unknown_target_lists_what_there_is(tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelError) as caught:
        attach(fresh(tiny_llama_dir), AdapterConfig(lora_target=("q_pro", "v_proj")))
    assert str(caught.value).startswith("adapter.lora_target: no linear layer is named 'q_pro'. Did you mean 'q_proj'?")
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in str(caught.value)
    assert linear_names(fresh(tiny_llama_dir))[0] == "down_proj"


def test_additions_have_the_dtype_of_the_base(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = attach(fresh(tiny_llama_dir, "bfloat16"), AdapterConfig())
    assert {parameter.dtype for _, parameter in trainable_parameters(model)} == {torch.bfloat16}
    save_adapter(model, tmp_path)
    loaded = load_adapter(fresh(tiny_llama_dir, "bfloat16"), tmp_path, trainable=True)
    assert {parameter.dtype for _, parameter in trainable_parameters(loaded)} == {torch.bfloat16}


# Stock peft 0.21 asks transformers 5.23 for an attribute that it has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapter", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_a_saved_adapter_comes_back_with_the_same_logits(tiny_llama_dir: Path, tmp_path: Path, adapter: dict) -> None:
    model = stirred(attach(fresh(tiny_llama_dir), AdapterConfig(lora_rank=4, **adapter)))
    save_adapter(model, tmp_path)
    expected = model(IDS).logits
    assert torch.equal(load_adapter(fresh(tiny_llama_dir), tmp_path).eval()(IDS).logits, expected)
    assert torch.equal(PeftModel.from_pretrained(fresh(tiny_llama_dir), tmp_path).eval()(IDS).logits, expected)
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
