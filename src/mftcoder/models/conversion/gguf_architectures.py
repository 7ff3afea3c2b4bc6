"""The architectures of .gguf files in Hugging Face's terms: configs from metadata, names and layouts of the tensors.

An unknown metadata key may change what the model computes, so it is refused; so is an unknown tensor. Names and layouts are those of
llama.cpp's convert_hf_to_gguf.py: Llama's queries and keys have the two halves of each head interleaved, Gemma's norms hold
w + 1, GPT-2's matrices are transposed, experts are stacked.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mftcoder.models.conversion.recipes import Recipe
from mftcoder.models.files.weights import StoredTensor, listed

Tensors = Mapping[str, StoredTensor]
HARMLESS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "expert_gating_func")
"""Keys that need no check: the embedding gives the vocabulary's size, and softmax is checked with the experts."""


class Metadata:
    """The metadata of one architecture. It remembers which keys were read."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.architecture = str(values.get("general.architecture", ""))
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`; a list of equal values counts as one. ValueError for nan, inf and values below 0."""
        self._read.add(name)
        value = self.values.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ValueError(f"its layers differ in {name}, which is not supported")
            value = value[0]
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"its metadata gives {self.architecture}.{name} as {value}")
        return value

    def need(self, name: str, default: Any = None) -> Any:
        """The value as `get`; ValueError if it is not a number above 0."""
        value = self.get(name, default)
        if value is None:
            raise ValueError(f"its metadata has no {self.architecture}.{name}")
        if not isinstance(value, (int, float)) or not value:
            raise ValueError(f"its metadata gives {self.architecture}.{name} as {value!r}, not as a number above 0")
        return value

    def unread(self) -> list[str]:
        """Keys of the architecture that were not read."""
        prefix = f"{self.architecture}."
        names = [key.removeprefix(prefix) for key in self.values if key.startswith(prefix)]
        return sorted(name for name in names if name not in self._read and name not in HARMLESS)


@dataclass(frozen=True)
class Architecture:
    """How to read one `general.architecture`."""

    config: Callable[[Metadata, Tensors], dict[str, Any]]
    inner: Mapping[str, str]  # blk.N.<key> -> <layers>.N.<value>; "{expert}" splits a stack of experts
    outer: Mapping[str, str]
    layers: str = "model.layers"
    positions: tuple[str, ...] = (
        "rope_freqs.weight",
    )  # tensors that scale rotary positions; they become part of the config
    change: Callable[[str, Tensor, Mapping[str, Any]], Tensor] = lambda key, tensor, config: tensor


def recipe(values: Mapping[str, Any], tensors: Tensors) -> Recipe:
    """The conversion of a file. ValueError with the reason if it would not compute the same."""
    metadata = Metadata(values)
    architecture = ARCHITECTURES.get(metadata.architecture)
    if values.get("general.type", "model") != "model":
        raise ValueError(f"its general.type is '{values['general.type']}'; only whole models are supported")
    if values.get("split.count", 0) > 1:
        raise ValueError(f"is one of {values['split.count']} parts; join them with llama-gguf-split --merge")
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(
            f"architecture '{metadata.architecture}' is not supported in .gguf files (known: {known}). Give the original folder"
        )
    config = {**architecture.config(metadata, tensors), **_token_ids(values)}
    if unread := metadata.unread():
        raise ValueError(
            f"its metadata holds {listed(unread)}, which may change what the model computes and is not supported"
        )
    return Recipe(metadata.architecture, config, partial(_native, architecture=architecture, config=config))


_IN_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)$")


def _native(name: str, tensor: Tensor, *, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Tensor]:
    if name in architecture.positions or name.endswith("attn_rot_embd.weight"):
        return {}
    layer = _IN_BLOCK.match(name)
    key, kind = (layer[2], layer[3]) if layer else name.rpartition(".")[::2]
    place = f"{architecture.layers}.{layer[1]}.{architecture.inner[key]}" if layer else architecture.outer[key]
    tensor = architecture.change(key, tensor, config)
    if "{expert}" not in place:
        return {f"{place}.{kind}": tensor}
    return {f"{place.format(expert=number)}.{kind}": part for number, part in enumerate(tensor.unbind(0))}


def _token_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {name: values.get(f"tokenizer.ggml.{key}") for name, key in names.items()}


def _decoder(metadata: Metadata, tensors: Tensors, *, eps: str = "layer_norm_rms_epsilon") -> dict[str, Any]:
    """The config values of all decoders. ValueError if keys and values of a head differ in size."""
    hidden, heads = metadata.need("embedding_length"), metadata.need("attention.head_count")
    size = metadata.need("attention.key_length", hidden // heads)
    if metadata.get("attention.value_length", size) != size:
        raise ValueError("its values and keys have different head sizes, which is not supported")
    return {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": metadata.need("feed_forward_length"),
        "num_hidden_layers": metadata.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.need("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": metadata.need("context_length"),
        "rms_norm_eps": metadata.need(f"attention.{eps}"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _rotary(metadata: Metadata, tensors: Tensors, size: int) -> dict[str, Any]:
    """Base and scaling of rotary positions over whole heads of `size`; ValueError if only a part of each head is rotated."""
    if metadata.get("rope.dimension_count", size) != size:
        raise ValueError("only a part of each head is rotated, which is not supported for this architecture")
    base = float(metadata.need("rope.freq_base", 10000.0))
    scaling = _scaling(metadata, tensors, base, size)
    return {"rope_theta": base, **({"rope_scaling": scaling} if scaling else {})}


def _scaling(metadata: Metadata, tensors: Tensors, base: float, size: int) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 0: none
    factor = float(metadata.get("rope.scaling.factor", 0) or metadata.get("rope.scale_linear", 0))
    original = metadata.get("rope.scaling.original_context_length")
    scaled = factor not in (0, 1)
    if "rope_freqs.weight" in tensors:
        if scaled and kind != "none":
            raise ValueError("it scales rotary positions twice, by rope_freqs and by a factor, which is not supported")
        return _llama3(tensors["rope_freqs.weight"].read().double().tolist(), base, size, original or 8192)
    if kind == "yarn":
        _check_yarn(metadata)
        betas = {key: metadata.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        if not original:
            raise ValueError("it scales rotary positions by yarn without an original context length")
        return {**yarn, **{key: beta for key, beta in betas.items() if beta is not None}} if scaled else None
    if kind not in ("linear", "none"):
        raise ValueError(f"it scales rotary positions by '{kind}', which is not supported for this architecture")
    return {"rope_type": "linear", "factor": factor} if scaled and kind == "linear" else None


def _check_yarn(metadata: Metadata) -> None:
    """ValueError unless yarn is used as published: transformers and llama.cpp apply other attention factors differently."""
    published = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "attn_factor": 1.0, "yarn_log_multiplier": 0.0}
    for name, usual in published.items():
        if not math.isclose(metadata.get(f"rope.scaling.{name}", usual), usual, abs_tol=1e-6):
            raise ValueError(f"it scales rotary positions by yarn with a {name} of its own, which is not supported")


def _llama3(divisors: list[float], base: float, size: int, original: int) -> dict[str, Any] | None:
    """Llama 3.1's scaling from the divisor of each frequency: 1 for short waves, the factor for long ones, a mix in between.

    Waves are short below original / 4 and long above original / 1; other bounds are refused.
    """
    low, high = 1.0, 4.0
    waves = [2 * math.pi * base ** (2 * index / size) for index in range(size // 2)]
    smooth = [min(1.0, max(0.0, (original / wave - low) / (high - low))) for wave in waves]
    if not all(value > 0 for value in divisors):
        raise ValueError("its rope_freqs hold a value that is not above 0")
    if len(divisors) != len(waves):
        raise ValueError(f"its rope_freqs has {len(divisors)} values for {len(waves)} frequencies")
    if smooth[-1] == 1 or all(math.isclose(value, 1, rel_tol=1e-5) for value in divisors):
        factor = 1.0
    else:
        factor = (1 - smooth[-1]) / (1 / divisors[-1] - smooth[-1])
    expected = [1 / ((1 - part) / factor + part) for part in smooth]
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(divisors, expected, strict=True)):
        raise ValueError("its rope_freqs scale rotary positions in a way that is not Llama 3.1's")
    if factor == 1:
        return None
    bounds = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
    return {"rope_type": "llama3", "factor": round(factor, 4), **bounds}


def _llama(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    config = _decoder(metadata, tensors)
    config |= _rotary(metadata, tensors, config["head_dim"])
    if experts := metadata.get("expert_count", 0):
        used = {"num_local_experts": experts, "num_experts_per_tok": metadata.need("expert_used_count")}
        return {
            **config,
            **used,
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "sliding_window": None,
        }
    metadata.get("expert_used_count")
    biases = {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    return {**config, **biases, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def _qwen(metadata: Metadata, tensors: Tensors, *, model_type: str, name: str) -> dict[str, Any]:
    config = _decoder(metadata, tensors)
    config |= _rotary(metadata, tensors, config["head_dim"])
    named = {"model_type": model_type, "architectures": [f"{name}ForCausalLM"], "use_sliding_window": False}
    return {**config, **named}


def _qwen_experts(
    metadata: Metadata, tensors: Tensors, *, model_type: str, name: str, normalized: bool
) -> dict[str, Any]:
    """The widths of experts come from their tensors, because not all files state them."""
    widths = {"moe_intermediate_size": tensors["blk.0.ffn_gate_exps.weight"].shape[1]}
    if "blk.0.ffn_gate_shexp.weight" in tensors:
        widths["shared_expert_intermediate_size"] = tensors["blk.0.ffn_gate_shexp.weight"].shape[0]
    for key in ("expert_feed_forward_length", "expert_shared_feed_forward_length"):
        metadata.get(key)
    if metadata.values.get(f"{metadata.architecture}.expert_gating_func", 1) != 1:
        raise ValueError("its router is not a softmax, which is not supported")
    counts = {"num_experts": metadata.need("expert_count"), "num_experts_per_tok": metadata.need("expert_used_count")}
    router = {"norm_topk_prob": bool(metadata.get("expert_weights_norm", normalized)), "decoder_sparse_step": 1}
    return {
        **_qwen(metadata, tensors, model_type=model_type, name=name),
        **widths,
        **counts,
        **router,
        "mlp_only_layers": [],
    }


def _starcoder2(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    config = _decoder(metadata, tensors, eps="layer_norm_epsilon")
    config |= _rotary(metadata, tensors, config.pop("head_dim"))
    named = {"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"], "hidden_act": "gelu_pytorch_tanh"}
    return {**config, **named, "norm_epsilon": config.pop("rms_norm_eps"), "use_bias": "blk.0.attn_q.bias" in tensors}


def _phi3(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    config = _decoder(metadata, tensors)
    size = config.pop("head_dim")
    turned = metadata.get("rope.dimension_count", size)
    original = metadata.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    factors = {
        f"{kind}_factor": tensors[name].read().double().tolist()
        for kind in ("short", "long")
        if (name := f"rope_factors_{kind}.weight") in tensors
    }
    scaling = {"rope_type": "longrope", **factors, "attention_factor": metadata.get("rope.scaling.attn_factor", 1.0)}
    if len(factors) == 1 or metadata.get("rope.scaling.type", "longrope") != "longrope":
        raise ValueError("it scales rotary positions in a way that is not Phi 3's")
    return {
        **config,
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "rope_theta": float(metadata.need("rope.freq_base", 10000.0)),
        "rope_scaling": scaling if factors else None,
        "partial_rotary_factor": turned / size,
        "original_max_position_embeddings": original,
        "sliding_window": metadata.get("attention.sliding_window") or None,
    }


GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models. They scale queries by hidden size / heads, the others by the head size; no metadata key tells which."""


def _gemma(metadata: Metadata, tensors: Tensors, *, name: str) -> dict[str, Any]:
    config = _decoder(metadata, tensors)
    config |= _rotary(metadata, tensors, config["head_dim"])
    config |= {"architectures": [f"{name}ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    if metadata.architecture == "gemma":
        return {**config, "model_type": "gemma"}
    is_27b = config["num_hidden_layers"] == GEMMA_27B[metadata.architecture]
    scale = config["hidden_size"] // config["num_attention_heads"] if is_27b else config["head_dim"]
    config |= {"query_pre_attn_scalar": scale, "sliding_window": metadata.need("attention.sliding_window")}
    final = metadata.get("final_logit_softcapping")
    if metadata.architecture == "gemma3":
        local = float(metadata.need("rope.freq_base_swa", 10000.0))
        return {**config, "model_type": "gemma3_text", "rope_local_base_freq": local, "final_logit_softcapping": final}
    capped = {"attn_logit_softcapping": metadata.need("attn_logit_softcapping"), "final_logit_softcapping": final}
    return {**config, **capped, "model_type": "gemma2"}


def _gpt2(metadata: Metadata, tensors: Tensors) -> dict[str, Any]:
    config = _decoder(metadata, tensors, eps="layer_norm_epsilon")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config["vocab_size"],
        "n_embd": config["hidden_size"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_positions": config["max_position_embeddings"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _without_interleaving(key: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(key)
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, tensor.shape[0] // heads // 2, 2)).transpose(1, 2).flatten(0, 2)


def _norms_around_one(key: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    return tensor - 1 if key.endswith("norm") else tensor


def _transposed(key: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    return tensor.T if key in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and tensor.ndim == 2 else tensor


def _gate_as_matrix(key: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    return tensor.unsqueeze(0) if key == "ffn_gate_inp_shexp" and tensor.ndim == 1 else tensor


OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2", "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
}  # fmt: skip
EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{expert}.gate_proj", "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
GEMMA2 = ATTENTION | MLP | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}  # fmt: skip
GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}

ARCHITECTURES = {
    "llama": Architecture(_llama, ATTENTION | MLP | MIXTRAL, OUTER, change=_without_interleaving),
    "qwen2": Architecture(partial(_qwen, model_type="qwen2", name="Qwen2"), ATTENTION | MLP, OUTER),
    "qwen3": Architecture(partial(_qwen, model_type="qwen3", name="Qwen3"), ATTENTION | QK_NORMS | MLP, OUTER),
    "qwen2moe": Architecture(
        partial(_qwen_experts, model_type="qwen2_moe", name="Qwen2Moe", normalized=False), ATTENTION | EXPERTS, OUTER,
        change=_gate_as_matrix,
    ),
    "qwen3moe": Architecture(
        partial(_qwen_experts, model_type="qwen3_moe", name="Qwen3Moe", normalized=True), ATTENTION | QK_NORMS | EXPERTS, OUTER
    ),
    "starcoder2": Architecture(_starcoder2, ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, OUTER),
    "phi3": Architecture(
        _phi3, ATTENTION | PHI3, OUTER, positions=("rope_factors_long.weight", "rope_factors_short.weight")
    ),
    "gemma": Architecture(partial(_gemma, name="Gemma"), ATTENTION | MLP, OUTER, change=_norms_around_one),
    "gemma2": Architecture(partial(_gemma, name="Gemma2"), GEMMA2, OUTER, change=_norms_around_one),
    "gemma3": Architecture(partial(_gemma, name="Gemma3"), GEMMA2 | QK_NORMS, OUTER, change=_norms_around_one),
    "gpt2": Architecture(_gpt2, GPT2, GPT2_OUTER, "transformer.h", (), _transposed),
}  # fmt: skip
