"""A Hugging Face model in the terms of .gguf files: metadata keys from its config, names and layouts of the tensors.

The way back from `conversion/gguf_architectures.py`, with its tables of names. What is written is read again from these plans by that
module, and the config that comes out is compared with the model's own: a model that a file cannot describe is refused.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from mftcoder.errors import ModelError
from mftcoder.models.conversion.gguf_architectures import ARCHITECTURES, Architecture, recipe
from mftcoder.models.files.weights import COMPUTED, StoredTensor

Keys = dict[str, Any]

FAMILIES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe", "starcoder2": "starcoder2", "phi3": "phi3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "gpt2": "gpt2",
}  # fmt: skip
"""model_type to the file's general.architecture."""

WITHOUT_EFFECT = frozenset({
    "model_type", "architectures", "dtype", "use_cache", "initializer_range", "bos_token_id", "eos_token_id",
    "pad_token_id", "pretraining_tp", "head_dim", "max_window_layers", "use_sliding_window", "attention_dropout",
    "hidden_dropout", "embedding_dropout", "residual_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "transformers_version", "_name_or_path",
    "intermediate_size", "n_inner", "original_max_position_embeddings", "id2label", "label2id",
    "chunk_size_feed_forward", "problem_type", "return_dict", "output_hidden_states", "is_encoder_decoder",
})  # fmt: skip
"""Values of a config that change nothing of what the model computes, or whose effect shows in the shapes of the tensors."""

IN_FLOAT32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd")
"""Matrices that llama.cpp never quantizes: routers and learned positions."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file that is not read yet."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # float32, in the file's layout

    @property
    def is_matrix(self) -> bool:
        """Whether it may be quantized."""
        return len(self.shape) > 1 and self.name.split(".")[-2] not in IN_FLOAT32


@dataclass(frozen=True)
class Layout:
    """What a file holds beside its tokenizer."""

    architecture: str
    keys: Keys  # without the architecture's prefix
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...] = ()  # what the user should know


def layout(folder: Path, tensors: Mapping[str, StoredTensor]) -> Layout:
    """The plan of a file for the model in `folder`. ModelError with the reason if a file cannot hold this model."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"{folder}: model type '{config.model_type}' cannot be written as .gguf (known: {', '.join(FAMILIES)}). Choose another "
            "method of quantization"
        )
    name = FAMILIES[config.model_type]
    planned = [*_planned(folder, ARCHITECTURES[name], name, tensors, config), *_scaling_tensors(config, name)]
    keys, notes = _keys(config, name), []
    window = _lost_window(config, name)
    if window:
        keys["context_length"] = window
        notes.append(
            f"the file states a context of {window} tokens: its format does not hold the sliding window of this model, and up to "
            "there the window changes nothing"
        )
    _check_read_back(folder, name, keys, planned, config, window)
    return Layout(name, keys, tuple(planned), tuple(notes))


def _lost_window(config: Any, name: str) -> int:
    """The sliding window of a family whose files have no key for it, where it is less than the context; else 0."""
    window = getattr(config, "sliding_window", None) if name in ("llama", "starcoder2") else None
    return int(window) if window and window < config.max_position_embeddings else 0


def _keys(config: Any, name: str) -> Keys:
    heads, hidden = config.num_attention_heads, config.hidden_size
    keys: Keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": hidden,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * hidden,
        "attention.head_count": heads,
        "vocab_size": config.vocab_size,
    }
    if name == "gpt2":
        return {**keys, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    eps = (
        ("layer_norm_epsilon", config.norm_epsilon)
        if name == "starcoder2"
        else ("layer_norm_rms_epsilon", config.rms_norm_eps)
    )
    size = getattr(config, "head_dim", None) or hidden // heads
    keys |= {"attention.head_count_kv": config.num_key_value_heads, f"attention.{eps[0]}": eps[1]}
    if name == "phi3":
        keys["rope.dimension_count"] = int(
            size * (getattr(config, "partial_rotary_factor", None) or _rope(config).get("partial_rotary_factor", 1))
        )
        keys["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    else:
        keys |= {"attention.key_length": size, "attention.value_length": size, "rope.dimension_count": size}
    return {**keys, **_rotary_keys(config, name), **_family_keys(config, name)}


def _family_keys(config: Any, name: str) -> Keys:
    keys: Keys = {}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if name in ("qwen2moe", "qwen3moe"):
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if name == "qwen2moe":
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if name in ("gemma2", "gemma3", "phi3") and config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in ("gemma2", "gemma3") and getattr(config, cap, None):
            keys[cap] = float(getattr(config, cap))
    return keys


def _rope(config: Any, kind: str = "full_attention") -> Mapping[str, Any]:
    """The parameters of the rotary positions; of Gemma 3 those of one `kind` of layer."""
    found: Mapping[str, Any] = config.rope_parameters or {}
    return found.get(kind, found)


def _rotary_keys(config: Any, name: str) -> Keys:
    rope = _rope(config)
    keys: Keys = {"rope.freq_base": float(rope["rope_theta"])}
    if name == "gemma3":
        keys["rope.freq_base_swa"] = float(_rope(config, "sliding_attention")["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind == "yarn":
        original = rope["original_max_position_embeddings"]
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"])}
        keys["rope.scaling.original_context_length"] = original
        betas = {beta: rope.get(beta) for beta in ("beta_fast", "beta_slow")}
        keys |= {f"rope.scaling.yarn_{beta}": float(value) for beta, value in betas.items() if value is not None}
    elif kind == "longrope" and name == "phi3":
        reach = config.max_position_embeddings / config.original_max_position_embeddings
        factor = rope.get("attention_factor") or (
            math.sqrt(1 + math.log(reach) / math.log(config.original_max_position_embeddings)) if reach > 1 else 1.0
        )
        keys["rope.scaling.attn_factor"] = float(factor)
    return keys


def _scaling_tensors(config: Any, name: str) -> Iterator[PlannedTensor]:
    """The divisors of the frequencies, which files hold as tensors: Llama 3.1's one list, Phi 3's two."""
    if name == "gpt2":
        return
    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    lists: dict[str, Sequence[float]] = {}
    if kind == "llama3":
        lists = {
            "rope_freqs.weight": _llama3_divisors(
                rope, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            )
        }
    elif kind == "longrope":
        lists = {f"rope_factors_{one}.weight": rope[f"{one}_factor"] for one in ("long", "short")}
    for tensor, values in lists.items():
        yield PlannedTensor(tensor, (len(values),), functools.partial(torch.tensor, values, dtype=torch.float32))


def _llama3_divisors(rope: Mapping[str, Any], size: int) -> list[float]:
    """1 for waves below original / high, the factor for those above original / low, a mix in between."""
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    waves = [2 * math.pi * rope["rope_theta"] ** (2 * index / size) for index in range(size // 2)]
    smooth = [min(1.0, max(0.0, (original / wave - low) / (high - low))) for wave in waves]
    return [1 / ((1 - part) / rope["factor"] + part) for part in smooth]


def _planned(
    folder: Path, architecture: Architecture, name: str, tensors: Mapping[str, StoredTensor], config: Any
) -> Iterator[PlannedTensor]:
    """The model's tensors by their names in the file, experts stacked. ModelError for a tensor that has no place."""
    places = _Places(architecture)
    stacks: dict[str, list[tuple[int, StoredTensor]]] = {}
    for tensor in tensors.values():
        if tensor.name.endswith(COMPUTED) or (tensor.name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        found = places.of(tensor.name)
        if found is None:
            raise ModelError(f"{folder}: holds {tensor.name}, which a .gguf file of a {name} model has no place for")
        stacks.setdefault(found[0], []).append((found[1], tensor))
    for place, parts in stacks.items():
        yield _stacked(place, [tensor for _, tensor in sorted(parts, key=lambda part: part[0])], name, config)


class _Places:
    """Names of Hugging Face -> names of the file, from an architecture's tables."""

    def __init__(self, architecture: Architecture):
        self._root = architecture.layers.partition(".")[0] + "."
        self._layer = re.compile(rf"{re.escape(architecture.layers)}\.(\d+)\.(.+)\.(weight|bias)$")
        self._outer = {value: key for key, value in architecture.outer.items()}
        self._inner = [
            (re.compile(re.escape(value).replace(re.escape("{expert}"), r"(\d+)") + "$"), key)
            for key, value in architecture.inner.items()
        ]

    def of(self, name: str) -> tuple[str, int] | None:
        """The tensor's name in the file and its number among experts. A checkpoint may omit the outermost module."""
        return self._find(name) or self._find(self._root + name)

    def _find(self, name: str) -> tuple[str, int] | None:
        layer = self._layer.match(name)
        if layer is None:
            module, _, kind = name.rpartition(".")
            return (f"{self._outer[module]}.{kind}", 0) if module in self._outer else None
        for pattern, key in self._inner:
            if found := pattern.match(layer[2]):
                return f"blk.{layer[1]}.{key}.{layer[3]}", int(found[1]) if found.groups() else 0
        return None


def _stacked(place: str, parts: Sequence[StoredTensor], name: str, config: Any) -> PlannedTensor:
    key = place.split(".")[-2]

    def read() -> Tensor:
        values = [_in_file(key, part.read().float(), name, config) for part in parts]
        return torch.stack(values) if key.endswith("_exps") else values[0]

    shape = tuple(_in_file(key, torch.empty(parts[0].shape, device="meta"), name, config).shape)
    return PlannedTensor(place, (len(parts), *shape) if key.endswith("_exps") else shape, read)


def _in_file(key: str, tensor: Tensor, name: str, config: Any) -> Tensor:
    """The layout of the file: the inverse of the architecture's `change`."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": getattr(config, "num_key_value_heads", 0)}
    if name == "llama" and key in heads:
        return tensor.unflatten(0, (heads[key], 2, tensor.shape[0] // heads[key] // 2)).transpose(1, 2).flatten(0, 2)
    if name.startswith("gemma") and key.endswith("norm"):
        return tensor + 1
    if name == "gpt2" and key in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and tensor.ndim == 2:
        return tensor.T
    return tensor.squeeze(0) if key == "ffn_gate_inp_shexp" else tensor


def _check_read_back(
    folder: Path, name: str, keys: Keys, planned: Sequence[PlannedTensor], config: Any, window: int
) -> None:
    """ModelError unless a reader of the plan gets the config of the model, in all that changes what it computes."""
    stored = {tensor.name: StoredTensor(folder, tensor.name, tensor.shape, tensor.read) for tensor in planned}
    values = {"general.architecture": name, **{f"{name}.{key}": value for key, value in keys.items()}}
    try:
        read = dict(recipe(values, stored).config)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: cannot be written as .gguf: {error}. Choose another method of quantization"
        ) from error
    found = AutoConfig.for_model(read.pop("model_type"), **read).to_dict()
    own = config.to_dict()
    lost = {"max_position_embeddings", "sliding_window", "layer_types"} if window else set()
    different = sorted(
        key for key in found.keys() - WITHOUT_EFFECT - lost if key in own and not _alike(found[key], own[key])
    )
    if different:
        values_of = ", ".join(f"{key} ({own[key]})" for key in different[:3])
        raise ModelError(
            f"{folder}: a .gguf file of a {name} model does not hold its {values_of}{' and more' * (len(different) > 3)}, so it would compute "
            "something else. Choose another method of quantization"
        )


def _alike(found: Any, own: Any) -> bool:
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        keys = {key for key in (*found, *own) if found.get(key) is not None and own.get(key) is not None}
        needed = {"rope_type", "factor"} & {*found, *own}
        return all(_alike(found.get(key), own.get(key)) for key in keys | needed)
    if isinstance(found, list) and isinstance(own, list):
        return len(found) == len(own) and all(map(_alike, found, own))
    if isinstance(found, float | int) and isinstance(own, float | int):
        return math.isclose(found, own, rel_tol=1e-3, abs_tol=1e-12)
    return bool(found == own)
