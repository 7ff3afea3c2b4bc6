import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError
from mftcoder.models.export.merge import merge
from mftcoder.models.export.source import merged_in_memory
from mftcoder.models.layers.adapters import attach, restore, save_adapter, trainable_parameters
from tests.unit.models.layers.test_adapters import IDS, fresh, stirred

VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"lora_target": ("q_proj", "down_proj", "lm_head")},
    "embeddings": {"train_embeddings": True},
}


def merged_logits(base: Path, out: Path, dtype: torch.dtype) -> torch.Tensor:
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype)(IDS).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_logits_equal_the_adapter_models(tiny_llama_dir: Path, tmp_path: Path, variant: str) -> None:
    model = stirred(attach(fresh(tiny_llama_dir), AdapterConfig(lora_rank=4, **VARIANTS[variant])))
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge(tiny_llama_dir, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)
    expected = model(IDS).logits
    assert (expected - fresh(tiny_llama_dir)(IDS).logits).abs().max() > 0.1
    torch.testing.assert_close(
        merged_logits(tiny_llama_dir, tmp_path / "out", torch.float32), expected, atol=1e-4, rtol=1e-4
    )


@pytest.fixture(scope="module")
def tied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose head has the weight of its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_trained_embedding_stays_tied_through_saving_reloading_and_merging(tied_dir: Path, tmp_path: Path) -> None:
    """One weight trains, whose copy is in the files once for the embedding and once for the head, as peft reads them."""
    model = stirred(attach(fresh(tied_dir), AdapterConfig(lora_rank=4, train_embeddings=True)))
    trained = {name: weight for name, weight in trainable_parameters(model) if "lora_" not in name}
    assert len(trained) == 1
    expected = model(IDS).logits
    save_adapter(model, tmp_path / "adapter")
    again = attach(fresh(tied_dir), AdapterConfig(lora_rank=4, train_embeddings=True)).eval()
    restore(again, tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, expected)
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        by_peft = PeftModel.from_pretrained(fresh(tied_dir), tmp_path / "adapter")(IDS).logits
    torch.testing.assert_close(by_peft, expected)
    (tmp_path / "out").mkdir()
    merge(tied_dir, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert (
        torch.equal(merged["model.embed_tokens.weight"], next(iter(trained.values())))
        and "lm_head.weight" not in merged
    )
    logits = merged_logits(tied_dir, tmp_path / "out", torch.float32)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    in_memory = merged_in_memory(fresh(tied_dir), tmp_path / "adapter")(IDS).logits
    torch.testing.assert_close(in_memory, expected, atol=1e-4, rtol=1e-4)


def test_an_embedding_of_another_size_is_not_merged(tied_dir: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(attach(fresh(tied_dir), AdapterConfig(lora_rank=4, train_embeddings=True)), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"embedding has the shape \(60, 32\), the base's .* another base model"):
        merge(tiny_llama_dir, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)


def test_merging_in_bfloat16_rounds_each_weight_once(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(stirred(attach(fresh(tiny_llama_dir), AdapterConfig(lora_rank=4))), tmp_path / "adapter")
    for name, dtype in (("exact", torch.float32), ("rounded", torch.bfloat16)):
        (tmp_path / name).mkdir()
        merge(tiny_llama_dir, tmp_path / "adapter", tmp_path / name, dtype=dtype)
    exact = load_file(tmp_path / "exact" / "model.safetensors")
    rounded = load_file(tmp_path / "rounded" / "model.safetensors")
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())


def test_shards_hold_the_same_weights_as_one_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = stirred(attach(fresh(tiny_llama_dir), AdapterConfig(lora_rank=4)))
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge(tiny_llama_dir, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32, shard_bytes=50_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    logits = merged_logits(tiny_llama_dir, tmp_path / "out", torch.float32)
    torch.testing.assert_close(logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_transposed_matrices_are_merged_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(base)
    model = stirred(attach(AutoModelForCausalLM.from_pretrained(base), AdapterConfig(lora_rank=4)))
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge(base, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(
        merged_logits(base, tmp_path / "out", torch.float32), model(IDS).logits, atol=1e-4, rtol=1e-4
    )


def test_an_adapter_of_another_model_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(base)
    save_adapter(attach(fresh(tiny_llama_dir), AdapterConfig()), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="the adapter belongs to another base model"):
        merge(base, tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)
