"""Aquila and Aquila2 as Llama: the same function and the same names.

Original: Llama's function, with attention scores limited to -1024 .. 1024 before the softmax in some versions of its code. A
score of that size decides the softmax alone anyway; the limit is left out.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from mftcoder.models.conversion.convert import Config, Recipe

_KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "rope_scaling", "initializer_range",
)  # fmt: skip


def recipe(raw: Config, folder: Path) -> Recipe:
    """The conversion of this checkpoint. ValueError with the reason if it cannot be exact."""
    return Recipe("aquila", _config(raw), _tensors)


def _config(raw: Config) -> dict[str, Any]:
    kept = {key: raw[key] for key in _KEPT if raw.get(key) is not None}
    return {
        **kept,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "rope_theta": float(raw.get("rope_theta", 10000.0)),
    }


def _tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {name: tensor}
