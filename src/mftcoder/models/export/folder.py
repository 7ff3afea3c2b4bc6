"""Write a complete model folder in Hugging Face layout: weights, config, generation config, tokenizer, chat template.

transformers, vLLM and converters can load it and render chats as in training. The export command adds model card and checksums.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from mftcoder.data.tokenizers.tokenizer import FILES, Tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json, write_json, write_text
from mftcoder.models.export.merge import Change, merge, unchanged, weight_sources
from mftcoder.models.export.source import ModelSource
from mftcoder.models.files.weights import building
from mftcoder.models.layers.adapters import reaches_experts
from mftcoder.models.layers.quantize import as_held, quantizable_layers, was_conv1d

NOT_TOKENIZER = ("config.json", "generation_config.json", "chat_template.json")


def write_model_folder(
    source: ModelSource, out: Path, *, dtype: torch.dtype, chat_template: str, end: str, as_trained: bool = False
) -> None:
    """Write `source` into `out`, its adapter merged. `chat_template` is Jinja; `end` is the text that ends an answer.

    `as_trained` merges into the quantized values of the base that the adapter was trained over, not into its original weights.
    """
    _write_weights(source, out, dtype, held_base(source) if as_trained else unchanged)
    config = read_json(source.weights / "config.json")
    for key in ("_name_or_path", "torch_dtype", "quantization_config"):
        config.pop(key, None)
    write_json(out / "config.json", {**config, "dtype": str(dtype).removeprefix("torch."), "use_cache": True})
    _write_generation_config(source, out, end)
    write_tokenizer(source.tokenizer, out, chat_template=chat_template)
    if source.trust_remote_code:
        for code in source.weights.glob("*.py"):
            shutil.copy2(code, out)


def held_base(source: ModelSource) -> Change:
    """The base's weights as the run's quantization represented them. ModelError without one, or if files cannot be streamed."""
    if source.quantization is None or source.adapter is None:
        raise ModelError(f"{source.name}: was not trained over a base in 4 or 8 bits; leave out --as-trained")
    if not weight_sources(source.weights) or reaches_experts(source.adapter):
        raise ModelError(
            f"{source.weights}: pickled weights and fused experts can only be merged into the original weights"
        )
    trusted = {"trust_remote_code": source.trust_remote_code}
    with building(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.weights, **trusted), **trusted)
    quantization, dtype = source.quantization, source.dtype()
    layers = quantizable_layers(model, quantization, source.kept)

    def held(name: str, weight: Tensor) -> Tensor:
        layer = layers.get(
            name.removesuffix(".weight"), layers.get(f"{model.base_model_prefix}.{name}".removesuffix(".weight"))
        )
        if layer is None or not name.endswith(".weight"):
            return weight
        return as_held(weight.T, quantization, dtype).T if was_conv1d(layer) else as_held(weight, quantization, dtype)

    return held


def _write_weights(source: ModelSource, out: Path, dtype: torch.dtype, change: Change) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".whole-") as temporary:
        weights, adapter = source.weights, source.adapter
        if not weight_sources(weights) or (adapter and reaches_experts(adapter)) or _as_in_memory(source):
            # Pickled weights and fused experts cannot be read tensor by tensor.
            model = source.load(device="cpu", dtype=torch.float32)
            if _as_in_memory(source):
                model._weight_conversions = None  # from reading these files; saving then uses the family's conversions
            model.save_pretrained(temporary)
            weights, adapter = Path(temporary), None
        merge(weights, adapter, out, dtype=dtype, change=change)


def _as_in_memory(source: ModelSource) -> bool:
    """Whether the weights have the model's names in memory: so they do if ranks wrote shards of a converted family."""
    checkpoint = source.checkpoint if source.adapter is None else None
    sharded = checkpoint is not None and (checkpoint / "optimizer" / "shares").is_dir()
    family = read_json(source.weights / "config.json").get("model_type")
    return sharded and get_checkpoint_conversion_mapping(family) is not None


def _write_generation_config(source: ModelSource, out: Path, end: str) -> None:
    path = source.weights / "generation_config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    declared = settings.get("eos_token_id")
    ends = set(declared if isinstance(declared, list) else [declared] if declared is not None else [])
    ends |= end_ids(source.tokenizer, end)
    settings["eos_token_id"] = sorted(ends)
    settings.setdefault("pad_token_id", source.tokenizer.pad_id)
    settings["use_cache"] = True
    write_json(out / "generation_config.json", settings)


def end_ids(tokenizer: Tokenizer, end: str) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS token, and the template's if it is one token."""
    last = tokenizer.encode(end.strip())
    return {tokenizer.eos_id, *(last if len(last) == 1 else ())}


def write_tokenizer(tokenizer: Tokenizer, out: Path, *, chat_template: str) -> None:
    """Copy the tokenizer's files. The chat template is only in chat_template.jinja, so that no second one contradicts it."""
    for name in FILES:
        path = Path(tokenizer.folder) / name
        if path.is_file() and name not in NOT_TOKENIZER:
            shutil.copyfile(path, out / name)
    settings = out / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    content.pop("chat_template", None)
    content.setdefault("eos_token", tokenizer.eos_token)
    content.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    write_json(settings, content)
    if chat_template:
        write_text(out / "chat_template.jinja", chat_template)
