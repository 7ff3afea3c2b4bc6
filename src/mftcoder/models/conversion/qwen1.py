"""The first Qwen as Qwen2: the fused projection is split in three, the rest is renamed.

In the original, `c_attn` gives q, k and v in sequence, with biases. Rotary positions cover the whole head and rotate its halves
against each other. The feed-forward part is `c_proj(w1(x) * silu(w2(x)))`, with RMSNorm. Qwen2 computes the same, with `w2` as gate
and `w1` as up. Beyond `seq_length` tokens the original changes its rotary base and scales queries by a logarithm; Qwen2 does not, so
the native model is exact up to there and ends there.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mftcoder.models.conversion.convert import Config, Recipe

_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)$")
_OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_INNER = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}


def qwen(raw: Config, folder: Path) -> Recipe:
    """The conversion of this checkpoint. ValueError with the reason if it cannot be exact."""
    return Recipe("qwen", _config(raw), _tensors)


def _config(raw: Config) -> dict[str, Any]:
    if not raw.get("no_bias", True):
        raise ValueError("this Qwen has biases in its feed-forward layers, which Qwen2 does not have")
    if raw.get("rotary_pct", 1.0) != 1.0:
        raise ValueError("this Qwen rotates only a part of each head, which Qwen2 does not do")
    heads = raw["num_attention_heads"]
    return {
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


def _tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    layer = _LAYER.match(name)
    if layer is None:
        return {_OUTER[name]: tensor}
    prefix, inner = f"model.layers.{layer[1]}", layer[2]
    if inner in ("attn.c_attn.weight", "attn.c_attn.bias"):
        kind = inner.rpartition(".")[2]
        return {f"{prefix}.self_attn.{part}_proj.{kind}": cut for part, cut in zip("qkv", tensor.chunk(3), strict=True)}
    return {f"{prefix}.{_INNER[inner]}": tensor}
