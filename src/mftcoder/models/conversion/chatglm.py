"""ChatGLM2, ChatGLM3 and CodeGeeX2 (and GLM-4 in that layout) as GLM: the fused projection is split in three, the rest is renamed.

In the original, `query_key_value` gives all query heads, then the key groups, then the value groups, with biases (without groups:
q, k and v of the first head, then of the second). Neighbours in the first half of each head are rotated against each other. The
feed-forward part is `dense_4h_to_h(silu(a) * b)`, with a and b the halves of `dense_h_to_4h`. There is an RMSNorm before attention
and before the feed-forward part. GLM computes the same.

`rope_ratio` was published with two meanings under one model type: ChatGLM2-32k divides positions by it, ChatGLM3-32k and GLM-4
multiply the base 10000 by it. The text of the modeling file decides. The first ChatGLM is refused: its positions have two
dimensions.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mftcoder.models.conversion.convert import Config, Recipe

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
_DIVIDES = re.compile(r"/\s*(self\.)?rope_ratio")
_MULTIPLIES = re.compile(r"base\s*\*=?\s*(self\.)?rope_ratio")
_EXPECTED = {
    "rmsnorm": (True, "LayerNorm instead of RMSNorm"),
    "apply_residual_connection_post_layernorm": (False, "residuals after the norm"),
    "post_layer_norm": (True, "no norm after the last layer"),
    "add_bias_linear": (False, "biases in its linear layers"),
}


def chatglm(raw: Config, folder: Path) -> Recipe:
    """The conversion of this checkpoint. ValueError with the reason if it cannot be exact."""
    return Recipe("chatglm", _config(raw, folder), partial(_tensors, raw=raw))


def _config(raw: Config, folder: Path) -> dict[str, Any]:
    if "padded_vocab_size" not in raw:
        raise ValueError(
            "the positions of the first ChatGLM have two dimensions, as in no native architecture; use ChatGLM2 or 3"
        )
    odd = [what for key, (usual, what) in _EXPECTED.items() if raw.get(key, usual) != usual]
    if odd:
        raise ValueError(f"this ChatGLM has {' and '.join(odd)}, which GLM does not have")
    heads = raw["num_attention_heads"]
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
        **_rotary(raw, folder),
        "partial_rotary_factor": 0.5,
        "attention_bias": bool(raw.get("add_qkv_bias")),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "eos_token_id": raw.get("eos_token_id", 2),
        "pad_token_id": raw.get("pad_token_id", 0),
    }


def _rotary(raw: Config, folder: Path) -> dict[str, Any]:
    """The rotary base and the scaling of positions, by either meaning of `rope_ratio`."""
    ratio = raw.get("rope_ratio", 1)
    if not 0 < ratio < math.inf:
        raise ValueError(f"its rope_ratio is {ratio}")
    if ratio == 1:
        return {"rope_theta": 10000.0}
    code = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("modeling*.py")))
    divides, multiplies = _DIVIDES.search(code), _MULTIPLIES.search(code)
    if bool(divides) == bool(multiplies):
        raise ValueError(
            f"its rope_ratio of {ratio} divides positions in ChatGLM2 and multiplies the rotary base in ChatGLM3, and no "
            f"modeling file in {folder} tells which. Put the model's modeling_chatglm.py there (it is read, never run)"
        )
    if divides:
        return {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": float(ratio)}}
    return {"rope_theta": 10000.0 * ratio}


def _tensors(name: str, tensor: Tensor, *, raw: Config) -> dict[str, Tensor]:
    layer = _LAYER.match(name)
    if layer is None:
        return {_OUTER[name]: tensor}
    prefix, inner = f"model.layers.{layer[1]}", layer[2]
    if inner in ("self_attention.query_key_value.weight", "self_attention.query_key_value.bias"):
        kind = inner.rpartition(".")[2]
        return {
            f"{prefix}.self_attn.{part}_proj.{kind}": cut for part, cut in zip("qkv", _cut(tensor, raw), strict=True)
        }
    return {f"{prefix}.{_INNER[inner]}": tensor}


def _cut(joined: Tensor, raw: Config) -> tuple[Tensor, ...]:
    """Queries, keys and values from the rows of the fused projection."""
    heads, size = raw["num_attention_heads"], raw["kv_channels"]
    if not raw.get("multi_query_attention"):
        return tuple(part.flatten(0, 1) for part in joined.unflatten(0, (heads, 3, size)).unbind(1))
    groups = raw["multi_query_group_num"]
    return joined.split([count * size for count in (heads, groups, groups)])
