"""The recipes of families that transformers does not support: their configs and tensors as those of a family that computes the same.

Qwen (the first) as Qwen2. `c_attn` gives q, k and v in sequence, with biases. Rotary positions cover the whole head and rotate its halves
against each other. The feed-forward part is `c_proj(w1(x) * silu(w2(x)))`, with RMSNorm: `w2` is Qwen2's gate and `w1` its up. Beyond
`seq_length` tokens the original changes its rotary base and scales queries by a logarithm; Qwen2 does not, so the native model is exact
up to there and ends there.

ChatGLM2, ChatGLM3 and CodeGeeX2 (and GLM-4 in that layout) as GLM. `query_key_value` gives all query heads, then the key groups, then the
value groups, with biases (without groups: q, k and v of the first head, then of the second). Neighbours in the first half of each head
are rotated against each other. The feed-forward part is `dense_4h_to_h(silu(a) * b)`, with a and b the halves of `dense_h_to_4h`. There
is an RMSNorm before attention and before the feed-forward part. `rope_ratio` was published with two meanings under one model type:
ChatGLM2-32k divides positions by it, ChatGLM3-32k and GLM-4 multiply the base 10000 by it. The text of the modeling file decides. The
first ChatGLM is refused: its positions have two dimensions.

Baichuan-7B, Baichuan2-7B, Aquila and Aquila2 as Llama. Baichuan has q, k and v in one matrix `W_pack` without biases. Baichuan2's logits
are `x . w / |w|` over each row w of the head (rows shorter than 1e-12 are divided by that), so the native head holds the normalized rows.
Training the head itself differs: the original normalizes after every update. A modeling file with NormHead shows that a checkpoint has
such a head; without the file the name of the class decides: BaichuanForCausalLM is Baichuan2's, BaiChuanForCausalLM is Baichuan-7B's. The
13B models are refused: they have ALiBi, a bias on distances, instead of rotary positions. Some versions of Aquila's code limit attention
scores to -1024 .. 1024 before the softmax. A score of that size dominates the softmax anyway, so the limit is left out.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Config = Mapping[str, Any]
Native = Callable[[str, Tensor], Mapping[str, Tensor]]
"""Name and value of an original tensor -> the native tensors. KeyError if the family has no such tensor."""


@dataclass(frozen=True)
class Recipe:
    """How to convert one checkpoint."""

    family: str  # the original's, for messages
    config: dict[str, Any]  # the native model's
    tensors: Native


@dataclass(frozen=True)
class _Layout:
    """Names of the original -> native names, and the name of the projection that gives queries, keys and values together."""

    layer: re.Pattern[str]
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    fused: str

    def native(self, cut: Callable[[Tensor], tuple[Tensor, ...]], name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The native tensors; `cut` gives queries, keys and values of the fused projection."""
        layer = self.layer.match(name)
        if layer is None:
            return {self.outer[name]: tensor}
        prefix, (module, _, kind) = f"model.layers.{layer[1]}", layer[2].rpartition(".")
        if module == self.fused and kind in ("weight", "bias"):
            return {f"{prefix}.self_attn.{part}.{kind}": one for part, one in zip(_QKV, cut(tensor), strict=True)}
        return {f"{prefix}.{self.inner[layer[2]]}": tensor}


_QKV = ("q_proj", "k_proj", "v_proj")
_QWEN = _Layout(
    re.compile(r"transformer\.h\.(\d+)\.(.+)$"),
    {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    },
    {
        "ln_1.weight": "input_layernorm.weight",
        "ln_2.weight": "post_attention_layernorm.weight",
        "attn.c_proj.weight": "self_attn.o_proj.weight",
        "mlp.w1.weight": "mlp.up_proj.weight",
        "mlp.w2.weight": "mlp.gate_proj.weight",
        "mlp.c_proj.weight": "mlp.down_proj.weight",
    },
    "attn.c_attn",
)
_CHATGLM = _Layout(
    re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)$"),
    {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    },
    {
        "input_layernorm.weight": "input_layernorm.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
        "self_attention.dense.weight": "self_attn.o_proj.weight",
        "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    },
    "self_attention.query_key_value",
)
_DIVIDES = re.compile(r"/\s*(self\.)?rope_ratio")
_MULTIPLIES = re.compile(r"base\s*\*=?\s*(self\.)?rope_ratio")
_OF_CHATGLM = {
    "rmsnorm": (True, "LayerNorm instead of RMSNorm"),
    "apply_residual_connection_post_layernorm": (False, "residuals after the norm"),
    "post_layer_norm": (True, "no norm after the last layer"),
    "add_bias_linear": (False, "biases in its linear layers"),
}
"""Setting -> the value that GLM computes, and what another value means."""
_IS_NORMALIZED = {"BaichuanForCausalLM": True, "BaiChuanForCausalLM": False}
"""Name of Baichuan's class in config.json -> whether its head is normalized."""
_LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
_AQUILA_KEYS = (
    *_LLAMA_KEYS, "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "rope_scaling", "initializer_range",
)  # fmt: skip


def qwen(raw: Config, folder: Path) -> Recipe:
    if not raw.get("no_bias", True):
        raise ValueError("this Qwen has biases in its feed-forward layers, which Qwen2 does not have")
    if raw.get("rotary_pct", 1.0) != 1.0:
        raise ValueError("this Qwen rotates only a part of each head, which Qwen2 does not do")
    heads = raw["num_attention_heads"]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"] // 2,
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": raw.get("kv_channels") or raw["hidden_size"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": raw.get("seq_length", 2048),
        "rms_norm_eps": raw["layer_norm_epsilon"],
        "rope_theta": float(raw.get("rotary_emb_base", 10000)),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "use_sliding_window": False,
    }
    return Recipe("qwen", config, partial(_QWEN.native, lambda joined: joined.chunk(3)))


def chatglm(raw: Config, folder: Path) -> Recipe:
    if "padded_vocab_size" not in raw:
        raise ValueError(
            "the positions of the first ChatGLM have two dimensions, as in no native architecture; use ChatGLM2 or 3"
        )
    odd = [what for key, (usual, what) in _OF_CHATGLM.items() if raw.get(key, usual) != usual]
    if odd:
        raise ValueError(f"this ChatGLM has {' and '.join(odd)}, which GLM does not have")
    heads = raw["num_attention_heads"]
    config = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": raw["padded_vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["ffn_hidden_size"],
        "num_hidden_layers": raw["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": raw["multi_query_group_num"] if raw.get("multi_query_attention") else heads,
        "head_dim": raw["kv_channels"],
        "hidden_act": "silu",
        "max_position_embeddings": raw["seq_length"],
        "rms_norm_eps": raw["layernorm_epsilon"],
        **_rotary_of_chatglm(raw, folder),
        "partial_rotary_factor": 0.5,
        "attention_bias": bool(raw.get("add_qkv_bias")),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "eos_token_id": raw.get("eos_token_id", 2),
        "pad_token_id": raw.get("pad_token_id", 0),
    }
    return Recipe("chatglm", config, partial(_CHATGLM.native, partial(_cut_of_chatglm, raw)))


def _rotary_of_chatglm(raw: Config, folder: Path) -> dict[str, Any]:
    """The rotary base and the scaling of positions, by either meaning of `rope_ratio`."""
    ratio = raw.get("rope_ratio", 1)
    if not 0 < ratio < math.inf:
        raise ValueError(f"its rope_ratio is {ratio}")
    if ratio == 1:
        return {"rope_theta": 10000.0}
    code = _modeling_code(folder)
    divides, multiplies = _DIVIDES.search(code), _MULTIPLIES.search(code)
    if bool(divides) == bool(multiplies):
        raise ValueError(
            f"its rope_ratio of {ratio} divides positions in ChatGLM2 and multiplies the rotary base in ChatGLM3, and no "
            f"modeling file in {folder} tells which. Put the model's modeling_chatglm.py there (it is read, never run)"
        )
    if divides:
        return {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": float(ratio)}}
    return {"rope_theta": 10000.0 * ratio}


def _cut_of_chatglm(raw: Config, joined: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values from the rows of the fused projection."""
    heads, size = raw["num_attention_heads"], raw["kv_channels"]
    if not raw.get("multi_query_attention"):
        return tuple(part.flatten(0, 1) for part in joined.unflatten(0, (heads, 3, size)).unbind(1))
    groups = raw["multi_query_group_num"]
    return joined.split([count * size for count in (heads, groups, groups)])


def _modeling_code(folder: Path) -> str:
    """The text of the model's own code, which is read and never run."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("modeling*.py")))


def baichuan(raw: Config, folder: Path) -> Recipe:
    if "max_position_embeddings" not in raw or raw["hidden_size"] == 5120:
        raise ValueError(
            "Baichuan-13B has ALiBi, a bias on the distance of tokens, instead of rotary positions; no native architecture "
            "computes that with packed rows. Use Baichuan2-7B"
        )
    config = {
        **{key: raw[key] for key in _LLAMA_KEYS},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": raw["num_attention_heads"],
        "hidden_act": raw.get("hidden_act", "silu"),
        "rope_theta": 10000.0,
        "bos_token_id": raw.get("bos_token_id", 1),
        "eos_token_id": raw.get("eos_token_id", 2),
        "pad_token_id": raw.get("pad_token_id", 0),
        "tie_word_embeddings": False,
        "attention_bias": False,
    }
    return Recipe("baichuan", config, partial(_tensors_of_baichuan, _normalizes_head(raw, folder)))


def _normalizes_head(raw: Config, folder: Path) -> bool:
    code = _modeling_code(folder)
    if "lm_head" in code:
        return "NormHead" in code
    names = raw.get("architectures") or [""]
    if names[0] not in _IS_NORMALIZED:
        raise ValueError(
            "its config.json does not say whether this is Baichuan or Baichuan2, whose heads differ. Put the model's "
            f"modeling_baichuan.py into {folder} (it is read, never run)"
        )
    return _IS_NORMALIZED[names[0]]


def _tensors_of_baichuan(normalized: bool, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name.endswith("self_attn.W_pack.weight"):
        prefix = name.removesuffix("W_pack.weight")
        return {f"{prefix}{part}.weight": one for part, one in zip(_QKV, tensor.chunk(3), strict=True)}
    if name == "lm_head.weight" and normalized:
        return {name: F.normalize(tensor.float()).to(tensor.dtype)}
    return {name: tensor}


def aquila(raw: Config, folder: Path) -> Recipe:
    config = {
        **{key: raw[key] for key in _AQUILA_KEYS if raw.get(key) is not None},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "rope_theta": float(raw.get("rope_theta", 10000.0)),
    }
    return Recipe("aquila", config, lambda name, tensor: {name: tensor})


RECIPES: Mapping[str, Callable[[Config, Path], Recipe]] = {
    "qwen": qwen,
    "baichuan": baichuan,
    "chatglm": chatglm,
    "aquila": aquila,
}
"""model_type of the original checkpoint -> its recipe, from its config and folder. ValueError with the reason if it cannot be exact."""
