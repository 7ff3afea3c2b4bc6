"""ChatGLM2, ChatGLM3 and CodeGeeX2 (and GLM-4 in that layout) as GLM: the fused projection is cut in three, the rest is renamed.

Original: `query_key_value` gives all query heads, then the key groups, then the value groups, with biases; the first half of each
head is rotated, neighbours against each other, by 10000 * rope_ratio; `dense_4h_to_h(silu(a) * b)` with a and b the halves of
`dense_h_to_4h`; RMSNorm before attention and before the feed-forward part. That is GLM's function. ChatGLM (the first) is
another architecture, with positions in two dimensions: refused.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mftcoder.models.convert import Config, Conversion

_LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)$")
_OUTER = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_INNER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_EXPECTED = {
    "rmsnorm": (True, "LayerNorm instead of RMSNorm"),
    "apply_residual_connection_post_layernorm": (False, "residuals behind the norm"),
    "post_layer_norm": (True, "no norm behind the last layer"),
    "add_bias_linear": (False, "biases in its linear layers"),
}


def _config(raw: Config, folder: Path) -> dict[str, Any]:
    if "padded_vocab_size" not in raw:
        raise ValueError(
            "ChatGLM (the first) has positions in two dimensions, which no native architecture has; take ChatGLM2 or 3"
        )
    odd = [what for key, (usual, what) in _EXPECTED.items() if raw.get(key, usual) != usual]
    if odd:
        raise ValueError(f"this ChatGLM has {' and '.join(odd)}, which GLM has not")
    heads = raw["num_attention_heads"]
    end = raw.get("eos_token_id", 2)
    return {
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
        "rope_theta": 10000.0 * raw.get("rope_ratio", 1),
        "partial_rotary_factor": 0.5,
        "attention_bias": bool(raw.get("add_qkv_bias")),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "eos_token_id": end,
        "pad_token_id": raw.get("pad_token_id", 0),
    }


def _tensors(name: str, tensor: Tensor, raw: Config) -> dict[str, Tensor]:
    layer = _LAYER.match(name)
    if layer is None:
        return {_OUTER[name]: tensor}
    prefix, inner = f"model.layers.{layer[1]}", layer[2]
    if inner in ("self_attention.query_key_value.weight", "self_attention.query_key_value.bias"):
        kind = inner.rpartition(".")[2]
        groups = raw["multi_query_group_num"] if raw.get("multi_query_attention") else raw["num_attention_heads"]
        sizes = [count * raw["kv_channels"] for count in (raw["num_attention_heads"], groups, groups)]
        return {
            f"{prefix}.self_attn.{part}_proj.{kind}": cut for part, cut in zip("qkv", tensor.split(sizes), strict=True)
        }
    return {f"{prefix}.{_INNER[inner]}": tensor}


CONVERSION = Conversion(_config, _tensors)
