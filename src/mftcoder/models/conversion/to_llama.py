"""Baichuan-7B, Baichuan2-7B, Aquila and Aquila2 as Llama, whose function they compute.

Baichuan has q, k and v in one matrix `W_pack` without biases, which is split in three. Baichuan2's logits are `x . w / |w|` over each
row w of the head (rows shorter than 1e-12 are divided by that), so the native head holds the normalized rows. Training the head
itself differs: the original normalizes after every update. A modeling file with NormHead shows that a checkpoint has such a head;
without the file the name of the class decides: BaichuanForCausalLM is Baichuan2's, BaiChuanForCausalLM is Baichuan-7B's. The 13B
models are refused: they have ALiBi, a bias on distances, instead of rotary positions.

Aquila has Llama's names, too. Some versions of its code limit attention scores to -1024 .. 1024 before the softmax. A score of that
size dominates the softmax anyway, so the limit is left out.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mftcoder.models.conversion.convert import Config, Recipe

CLASSES = {"BaichuanForCausalLM": True, "BaiChuanForCausalLM": False}
"""Name of the class in config.json to whether its head is normalized."""
_AQUILA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "rope_scaling", "initializer_range",
)  # fmt: skip


def baichuan(raw: Config, folder: Path) -> Recipe:
    """The conversion of a Baichuan checkpoint. ValueError with the reason if it cannot be exact."""
    return Recipe(
        "baichuan", _baichuan_config(raw), partial(_baichuan_tensors, normalized=_normalizes_head(raw, folder))
    )


def aquila(raw: Config, folder: Path) -> Recipe:
    return Recipe("aquila", _aquila_config(raw), lambda name, tensor: {name: tensor})


def _aquila_config(raw: Config) -> dict[str, Any]:
    kept = {key: raw[key] for key in _AQUILA_KEYS if raw.get(key) is not None}
    return {
        **kept,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "rope_theta": float(raw.get("rope_theta", 10000.0)),
    }


def _baichuan_config(raw: Config) -> dict[str, Any]:
    if "max_position_embeddings" not in raw or raw["hidden_size"] == 5120:
        raise ValueError(
            "Baichuan-13B has ALiBi, a bias on the distance of tokens, instead of rotary positions; no native architecture "
            "computes that with packed rows. Use Baichuan2-7B"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": raw["num_attention_heads"],
        "num_key_value_heads": raw["num_attention_heads"],
        "hidden_act": raw.get("hidden_act", "silu"),
        "max_position_embeddings": raw["max_position_embeddings"],
        "rms_norm_eps": raw["rms_norm_eps"],
        "rope_theta": 10000.0,
        "bos_token_id": raw.get("bos_token_id", 1),
        "eos_token_id": raw.get("eos_token_id", 2),
        "pad_token_id": raw.get("pad_token_id", 0),
        "tie_word_embeddings": False,
        "attention_bias": False,
    }


def _normalizes_head(raw: Config, folder: Path) -> bool:
    code = "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("modeling*.py"))
    if "lm_head" in code:
        return "NormHead" in code
    names = raw.get("architectures") or [""]
    if names[0] not in CLASSES:
        raise ValueError(
            "its config.json does not say whether this is Baichuan or Baichuan2, whose heads differ. Put the model's "
            f"modeling_baichuan.py into {folder} (it is read, never run)"
        )
    return CLASSES[names[0]]


def _baichuan_tensors(name: str, tensor: Tensor, *, normalized: bool) -> dict[str, Tensor]:
    if name.endswith("self_attn.W_pack.weight"):
        prefix = name.removesuffix("W_pack.weight")
        return {f"{prefix}{part}_proj.weight": cut for part, cut in zip("qkv", tensor.chunk(3), strict=True)}
    if name == "lm_head.weight" and normalized:
        return {name: F.normalize(tensor.float()).to(tensor.dtype)}
    return {name: tensor}
