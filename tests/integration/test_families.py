"""Every family of the table trains, packs, exports and comes back: a tiny random instance of each, through the real verbs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mftcoder.app.results.export import export
from mftcoder.app.training.train import train
from mftcoder.app.training.validate import validate
from mftcoder.config.load import load_config
from mftcoder.errors import MftError
from mftcoder.kernels import attention
from mftcoder.models.export.source import find_checkpoint
from mftcoder.models.layers.adapters import load_adapter
from mftcoder.models.loading.families import FAMILIES
from mftcoder.models.loading.load import load_folder
from mftcoder.training.forward.isolation import choose_attention
from mftcoder.training.forward.language_model import LanguageModel
from tests.integration.test_train_cli import metrics, write_config, write_tasks

COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "topk_group": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
TINY: dict[
    str, tuple[dict[str, Any], set[str]]
] = {  # architecture -> its config beside COMMON, layers that all-linear must reach
    "llama": ({}, ATTENTION | MLP),
    "qwen2": ({}, ATTENTION | MLP),
    "qwen3": ({"head_dim": 8}, ATTENTION | MLP),
    "qwen2_moe": ({**EXPERTS, "shared_expert_intermediate_size": 24}, ATTENTION | MLP),
    "qwen3_moe": ({**EXPERTS, "head_dim": 8}, ATTENTION | {"experts"}),
    "deepseek_v2": ({**DEEPSEEK, "n_group": 1}, {"q_proj", "kv_b_proj", "o_proj", "experts"} | MLP),
    "deepseek_v3": (
        {**DEEPSEEK, "q_lora_rank": 16, "n_group": 2},
        {"q_b_proj", "kv_b_proj", "o_proj", "experts"} | MLP,
    ),
    "mistral": ({"sliding_window": 16}, ATTENTION | MLP),
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, ATTENTION | {"experts"}),
    "gpt_bigcode": ({**GPT, "multi_query": True}, {"c_attn", "c_fc", "c_proj"}),
    "starcoder2": ({"sliding_window": 16}, ATTENTION | {"c_fc", "c_proj"}),
    "gpt_neox": ({}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "phi": ({}, {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
    "phi3": ({}, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "gemma": ({"head_dim": 8}, ATTENTION | MLP),
    "gemma2": ({"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}, ATTENTION | MLP),
    "gemma3_text": ({"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}, ATTENTION | MLP),
    "glm": ({"head_dim": 8}, ATTENTION | {"gate_up_proj", "down_proj"}),
    "gpt2": (GPT, {"c_attn", "c_fc", "c_proj"}),
}


def tiny_folder(folder: Path, architecture: str, tokenizer_dir: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = TINY[architecture][0]
    common = {} if "n_embd" in own else COMMON
    config = AutoConfig.for_model(architecture, **{**common, **own, **ids, "vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def best_attention(folder: Path) -> LanguageModel:
    """The model with the attention that `auto` picks on a CPU."""
    attention.register()
    module = load_folder(folder, dtype=torch.float32, device="cpu")
    model = LanguageModel(module, attn_implementation="segments", num_tasks=1)
    choose_attention(
        model, attention.candidates(torch.device("cpu")), (torch.arange(5, 45), torch.arange(7, 50)), print
    )
    return model


def test_the_table_and_this_test_know_the_same_architectures() -> None:
    assert {family.native_type for family in FAMILIES} == set(TINY)


@pytest.mark.parametrize("architecture", TINY)
def test_packed_samples_are_as_if_alone(tmp_path: Path, tiny_tokenizer_dir: Path, architecture: str) -> None:
    model = best_attention(tiny_folder(tmp_path, architecture, tiny_tokenizer_dir))
    samples = [torch.arange(5, 5 + length) for length in (23, 1, 40, 7)]
    positions = torch.cat([torch.arange(len(sample)) for sample in samples])[None]
    with model.evaluating():
        packed = model.hidden_states(torch.cat(samples)[None], positions)[0]
        alone = [model.hidden_states(sample[None], torch.arange(len(sample))[None])[0] for sample in samples]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", TINY)
def test_it_learns_and_its_export_is_what_was_trained(
    tmp_path: Path, tiny_tokenizer_dir: Path, architecture: str
) -> None:
    base = tiny_folder(tmp_path / "base", architecture, tiny_tokenizer_dir)
    config = write_config(
        tmp_path, base, write_tasks(tmp_path / "data", 8), adapter__lora_dropout=0.0, data__chat_template="chatml", train__max_steps=4,
        train__eval_strategy="no", train__save_steps=4,
    )  # fmt: skip
    train(load_config(config))
    run = tmp_path / "run"
    losses = [record["loss"] for record in metrics(run) if "loss" in record]
    assert losses[-1] < losses[0]
    balanced = architecture in ("mixtral", "qwen2_moe", "qwen3_moe")
    assert sum("router_loss" in record for record in metrics(run)) == (4 if balanced else 0)
    adapter = find_checkpoint(run, "latest") / "model"
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        reached = {name.partition(".lora_")[0].rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert reached >= TINY[architecture][1]
    export(run, tmp_path / "out", checkpoint="latest")
    ids = torch.arange(5, 45)[None]
    trained = load_adapter(load_folder(base, dtype=torch.float32, device="cpu"), adapter).eval()(ids).logits
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(exported, trained, atol=1e-4, rtol=1e-4)
    assert (trained - load_folder(base, dtype=torch.float32, device="cpu")(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_bigcode"])
def test_rows_longer_than_a_table_of_positions_are_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, architecture: str
) -> None:
    base = tiny_folder(tmp_path / "base", architecture, tiny_tokenizer_dir)
    config = load_config(write_config(tmp_path, base, write_tasks(tmp_path / "data", 8), data__max_length=2048))
    for verb in (validate, train):
        with pytest.raises(MftError, match=r"data.max_length: 2048: .* has a table of only 256 positions"):
            verb(config)


def test_rows_beyond_what_a_rotary_embedding_was_made_for_are_warned_of(
    tmp_path: Path, tiny_llama_dir: Path, said: Callable[[], str]
) -> None:
    data = write_tasks(tmp_path / "data", 8)
    fields = {"train__max_steps": 1, "train__eval_strategy": "no", "train__gradient_accumulation_steps": 1}
    config = load_config(write_config(tmp_path, tiny_llama_dir, data, data__max_length=520, **fields))
    for verb in (validate, train):
        verb(config)
        assert "data.max_length: 520 is more than the 512 positions that" in said()
    validate(load_config(write_config(tmp_path, tiny_llama_dir, data, data__max_length=512, **fields)))
    assert "positions that" not in said()
