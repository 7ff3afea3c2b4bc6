"""Each architecture of .gguf files computes the same as the model that was written into the file; unknown files are refused.

The files are written here with the gguf package: its own table of tensor names, its own names of keys, and the layouts of llama.cpp.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mftcoder.errors import ModelError
from mftcoder.models.conversion.gguf import folder_of
from mftcoder.models.files.download import models_cache
from mftcoder.models.loading.load import load_folder

VOCABULARY = 64
COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
LLAMA_3_1 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [2.0, 2.2, 2.4, 2.6]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 128,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "n_inner": 48,
    "vocab_size": VOCABULARY,
    "eos_token_id": 2,
}
Keys = dict[str, float | int | str]
Tensors = dict[str, Tensor]


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"rope_scaling": scaling, "rope_theta": 10000.0}


def rope_freqs(divisors: list[float]) -> Tensors:
    return {"rope_freqs.weight": torch.tensor(divisors)}


def llama_3_1_divisors(theta: float, size: int, factor: float) -> list[float]:
    """The divisors of Llama 3.1's scaling: `factor` for waves over 8192, 1 below 2048, a mix in between."""
    waves = [2 * math.pi * theta ** (2 * index / size) for index in range(size // 2)]
    shares = [min(1.0, max(0.0, (8192 / wave - 1) / 3)) for wave in waves]
    return [1 / ((1 - share) / factor + share) for share in shares]


YARN: Keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
YARN_CONFIG = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR: Keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
THETA = 500000.0
CASES: dict[str, tuple[str, str, dict[str, Any], Keys, Tensors]] = {  # GGUF's name, transformers', config, more keys, more tensors
    "llama": ("llama", "llama", {}, {}, {}),
    "llama with biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}, {}, {}),
    "llama linear": ("llama", "llama", scaled(rope_type="linear", factor=4.0), LINEAR, {}),
    "llama linear, as old files say it": ("llama", "llama", scaled(rope_type="linear", factor=4.0), {"rope.scale_linear": 4.0}, {}),
    "llama yarn": ("llama", "llama", scaled(**YARN_CONFIG), YARN, {}),
    "llama yarn with betas": (
        "llama", "llama", scaled(**YARN_CONFIG, beta_fast=16.0, beta_slow=2.0),
        {**YARN, "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}, {},
    ),
    "llama 3.1": (
        "llama", "llama", {"head_dim": 32, "rope_theta": THETA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA_3_1}},
        {}, rope_freqs(llama_3_1_divisors(THETA, 32, 8.0)),
    ),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, {}, {}),
    "qwen2": ("qwen2", "qwen2", {}, {}, {}),
    "qwen2 yarn": ("qwen2", "qwen2", scaled(**YARN_CONFIG), YARN, {}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}, {}, {}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40}, {}, {}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}, {}, {}),
    "starcoder2": ("starcoder2", "starcoder2", {"sliding_window": None, "rope_theta": 3e5}, {}, {}),
    "phi3": ("phi3", "phi3", {"sliding_window": 8}, {}, {}),
    "phi3 longrope": (
        "phi3", "phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128},
        {"rope.scaling.attn_factor": math.sqrt(1 + math.log(2) / math.log(128)), "rope.scaling.original_context_length": 128},
        {"rope_factors_short.weight": torch.tensor(SHORT), "rope_factors_long.weight": torch.tensor(LONG)},
    ),
    "gemma": ("gemma", "gemma", {"head_dim": 16}, {}, {}),
    "gemma2": ("gemma2", "gemma2", GEMMA, {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, {}),
    "gemma3": ("gemma3", "gemma3_text", {**GEMMA, "num_hidden_layers": 7}, {"rope.freq_base": 1e6}, {}),
    "gemma3 linear": (
        "gemma3", "gemma3_text", {**GEMMA, "num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, {},
    ),
    "gpt2": ("gpt2", "gpt2", GPT2, {}, {}),
}  # fmt: skip


def random_model(model_type: str, own: dict[str, Any]) -> Any:
    """A model in which every weight matters, also norms and biases."""
    config = AutoConfig.for_model(model_type, **(own if model_type == "gpt2" else {**COMMON, **own}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    return model


def interleaved(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, 2, weight.shape[0] // heads // 2)).transpose(1, 2).flatten(0, 2)


def expert_tensors(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    block = f"blk.{name.split('.')[2]}.ffn"
    if name.endswith("gate_up_proj"):
        gate, up = weight.chunk(2, dim=1)
        yield from ((f"{block}_gate_exps.weight", gate), (f"{block}_up_exps.weight", up))
    else:
        yield f"{block}_down_exps.weight", weight


def in_gguf_layout(name: str, weight: Tensor, config: Any, architecture: str) -> Tensor:
    """The layouts of llama.cpp's converter."""
    base, _, kind = name.rpartition(".")
    if architecture == "llama" and base.endswith(("q_proj", "k_proj")):
        return interleaved(weight, config.num_attention_heads if "q_proj" in base else config.num_key_value_heads)
    if architecture.startswith("gemma") and base.endswith("norm"):
        return weight + 1
    if architecture == "gpt2" and kind == "weight" and ".c_" in name:
        return weight.T
    return weight[0] if "shared_expert_gate" in name else weight


def gguf_tensors(model: Any, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Names from the gguf package's own table."""
    config, number = model.config, {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name:
            yield from expert_tensors(name, weight)
            continue
        base, _, kind = name.rpartition(".")
        found = names.get_name(base.replace("block_sparse_moe", "mlp"))
        assert found is not None, name
        yield f"{found}.{kind}", in_gguf_layout(name, weight, config, architecture)


def metadata(model: Any, architecture: str) -> Keys:
    config = model.config
    keys: Keys = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", 48), "attention.head_count": config.num_attention_heads,
        "vocab_size": VOCABULARY,
    }  # fmt: skip
    if architecture == "gpt2":
        return {**keys, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    if architecture == "starcoder2":
        keys["attention.layer_norm_epsilon"] = config.norm_epsilon
    else:
        keys["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    keys["attention.head_count_kv"] = config.num_key_value_heads
    if head := getattr(config, "head_dim", None):
        keys |= {"attention.key_length": head, "attention.value_length": head}
    if (theta := (config.rope_parameters or {}).get("rope_theta")) is not None:
        keys["rope.freq_base"] = float(theta)
    if window := getattr(config, "sliding_window", None):
        keys["attention.sliding_window"] = window
    if experts := getattr(config, "num_local_experts", 0) or getattr(config, "num_experts", 0):
        keys |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    return keys


def write_file(
    path: Path,
    model: Any,
    architecture: str,
    keys: Keys,
    tensors: Tensors,
    *,
    change: Callable[[Tensors], object] = lambda held: None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {**metadata(model, architecture), **keys}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name if name.startswith(("general.", "split.")) else f"{architecture}.{name}", value)  # type: ignore[operator]
    held = {**dict(gguf_tensors(model, architecture)), **tensors}
    change(held)
    for name, tensor in held.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, VOCABULARY, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("case", CASES)
def test_the_folder_computes_the_same_as_the_original_of_the_file(tmp_path: Path, case: str) -> None:
    architecture, model_type, own, keys, tensors = CASES[case]
    model = random_model(model_type, own)
    folder = folder_of(write_file(tmp_path / "tiny.gguf", model, architecture, keys, tensors))
    loaded = load_folder(folder, dtype=torch.float32, device="cpu")
    assert type(loaded) is type(model)
    expected = logits(model)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_the_cases_with_scaled_positions_differ_from_the_unscaled_model() -> None:
    """Otherwise a lost scaling would pass the test above."""
    unscaled = logits(random_model("llama", {}))
    for case in ("llama linear", "llama yarn"):
        assert (logits(random_model("llama", CASES[case][2])) - unscaled).abs().max() > 0.5


def without(name: str) -> Callable[[Tensors], object]:
    return lambda held: held.pop(name)


def longer(name: str) -> Callable[[Tensors], object]:
    return lambda held: held.update({name: torch.cat([held[name], held[name][:1]])})


def extra(name: str) -> Callable[[Tensors], object]:
    return lambda held: held.update({name: torch.zeros(32)})


def nothing(held: Tensors) -> None:
    pass


UP, MIXED = "model.layers.1.mlp.up_proj.weight", [1.0, 1.0, 5.0, 3.0]
REFUSED: dict[str, tuple[str, Keys, Tensors, Callable[[Tensors], object]]] = {
    "a missing tensor": (f"its files lack 1 of the model's weights: {UP}", {}, {}, without("blk.1.ffn_up.weight")),
    "a missing embedding": ("has no tensor 'token_embd.weight'", {}, {}, without("token_embd.weight")),
    "a missing block": ("its files lack 9 of the model's weights", {"block_count": 3}, {}, nothing),
    "another shape": (f"{UP} is 49 x 32 in the files, but 48 x 32", {}, {}, longer("blk.1.ffn_up.weight")),
    "a tensor without a place": ("holds a weight blk.0.attn_sinks.weight, which a llama model does not have", {}, {}, extra("blk.0.attn_sinks.weight")),
    "a bias that the others lack": ("of the model's weights", {}, {}, extra("blk.0.attn_q.bias")),
    "a key that may change the function": (r"holds attention.scale, which may change", {"attention.scale": 0.5}, {}, nothing),
    "a window": (r"holds attention.sliding_window, which may change", {"attention.sliding_window": 8}, {}, nothing),
    "a part of each head": ("only a part of each head is rotated", {"rope.dimension_count": 4}, {}, nothing),
    "values of another size": ("its values and keys have different head sizes", {"attention.key_length": 8, "attention.value_length": 4}, {}, nothing),
    "an unknown scaling": ("scales rotary positions by 'longrope'", {"rope.scaling.type": "longrope"}, {}, nothing),
    "yarn with a factor of its own": ("yarn with a yarn_attn_factor of its own", {**YARN, "rope.scaling.yarn_attn_factor": 2.0}, {}, nothing),
    "yarn from nowhere": ("scales rotary positions by yarn without an original context length", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, nothing),
    "another rope_freqs": ("not Llama 3.1's", {}, rope_freqs(MIXED), nothing),
    "rope_freqs of another length": ("has 3 values for 4 frequencies", {}, rope_freqs([1.0, 2.0, 3.0]), nothing),
    "two scalings": ("scales rotary positions twice", LINEAR, rope_freqs([2.0, 2.0, 2.0, 2.0]), nothing),
    "no heads": ("gives llama.attention.head_count as 0, not as a number above 0", {"attention.head_count": 0}, {}, nothing),
    "no key heads": ("gives llama.attention.head_count_kv as 0", {"attention.head_count_kv": 0}, {}, nothing),
    "no blocks": ("gives llama.block_count as 0", {"block_count": 0}, {}, nothing),
    "no base": ("gives llama.rope.freq_base as 0.0", {"rope.freq_base": 0.0}, {}, nothing),
    "a base that is no number": ("gives llama.rope.freq_base as nan", {"rope.freq_base": math.nan}, {}, nothing),
    "an endless scaling": ("gives llama.rope.scaling.factor as inf", {**LINEAR, "rope.scaling.factor": math.inf}, {}, nothing),
    "a negative epsilon": ("layer_norm_rms_epsilon as -1.0", {"attention.layer_norm_rms_epsilon": -1.0}, {}, nothing),
    "a text for a number": ("gives llama.attention.head_count as 'four'", {"attention.head_count": "four"}, {}, nothing),
    "a block too many": ("holds model.layers.1.input_layernorm.weight, .* and 6 more, which", {"block_count": 1}, {}, nothing),
    "a bias of a norm": ("holds model.layers.0.input_layernorm.bias, which", {}, {"blk.0.attn_norm.bias": torch.zeros(32)}, nothing),
    "a name without an end": ("holds a weight foo, which a llama model does not have", {}, {"foo": torch.zeros(3)}, nothing),
    "another family's positions": ("holds a weight rope_factors_long.weight", {}, {"rope_factors_long.weight": torch.ones(4)}, nothing),
    "rope_freqs of zero": ("its rope_freqs hold a value that is not above 0", {}, rope_freqs([1.0, 1.0, 1.0, 0.0]), nothing),
    "a part of a model": ("is one of 3 parts; join them", {"split.count": 3}, {}, nothing),
    "an adapter": ("its general.type is 'adapter'; only whole models are supported", {"general.type": "adapter"}, {}, nothing),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_would_compute_something_else_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    message, keys, tensors, change = REFUSED[case]
    path = write_file(tmp_path / "tiny.gguf", random_model("llama", {}), "llama", keys, tensors, change=change)
    with pytest.raises(ModelError, match=message) as caught:
        folder_of(path)
    assert str(caught.value).startswith(str(path))
    assert all("\n" not in problem for problem in caught.value.problems)
    assert not list(models_cache().iterdir())


def test_an_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        ModelError, match=r"architecture 'falcon' is not supported in .gguf files \(known: llama, qwen2,"
    ):
        folder_of(tmp_path / "tiny.gguf")


def test_positions_that_rope_freqs_do_not_change_are_not_scaled(tmp_path: Path) -> None:
    path = write_file(tmp_path / "tiny.gguf", random_model("llama", {}), "llama", {}, rope_freqs([1.0, 1.0, 1.0, 1.0]))
    assert AutoConfig.from_pretrained(folder_of(path)).rope_parameters["rope_type"] == "default"
