"""Which model a config means, and whether it can be trained: everything that is known before a weight is loaded.

Goes in: the model section. Comes out: a local folder, its config, its size, and the tokenizer's folder; or a ModelError with
all problems, each naming the path and what to do. Reads configs, tokenizers and the headers of weight files, no weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.data.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json
from mftcoder.models import convert, gguf, hub
from mftcoder.models.quantize import quantizable_weights, quantization_problems

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ResolvedModel:
    """A base model that exists, in a folder in Hugging Face layout."""

    name: str  # as the user wrote it
    path: Path  # folder with config.json; for a Hub id the snapshot, perhaps without its weights yet
    config: Any  # transformers' PretrainedConfig
    parameters: int  # weights, shared ones counted once


@dataclass(frozen=True)
class ParameterCount:
    """How many weights a model has and how many of them are trained."""

    total: int
    trainable: int
    quantizable: int  # weights that model.quantization would hold in fewer bits


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """The model that `config` means, checked without loading its weights. ModelError lists what is wrong with it."""
    name = config.model_name_or_path
    path = local_folder(name, weights=False, pickled=not config.use_safetensors)
    model_config = read_model_config(path, name=name, trust_remote_code=config.trust_remote_code)
    tokenizer_name = config.tokenizer_name_or_path
    is_local = Path(name).expanduser().exists()
    quantization = config.quantization
    problems = [
        *(quantization_problems(quantization, model_config, name=name) if quantization else ()),
        *(weight_problems(path, allow_pickled=not config.use_safetensors) if is_local else ()),
        *tokenizer_problems(tokenizer_name or name, vocab_size=_vocab_size(model_config)),
    ]
    if problems:
        raise ModelError(*problems)
    parameters = count_parameters(model_config, trust_remote_code=config.trust_remote_code).total
    return ResolvedModel(name, path, model_config, parameters)


def local_folder(name: str, *, weights: bool, pickled: bool = False) -> Path:
    """The native folder behind a path, a .gguf file or a Hub id; what is not native is converted once into the cache."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return gguf.folder_of(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: is not a model folder: it has no config.json{_what_it_may_be(path)}")
        return convert.converted(path, name=name, pickled=pickled) if convert.needs_conversion(path) else path
    if path.exists():
        raise ModelError(f"{path}: is a file; give a model folder, a .gguf file or a Hub id")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"{path}: no such folder; give a model folder, a .gguf file or a Hub id")
    fetched = hub.fetch(name, weights=weights, pickled=pickled)
    if convert.needs_conversion(fetched):
        whole = hub.fetch(name, weights=True, pickled=pickled)
        return convert.converted(whole, name=name, pickled=pickled)
    return fetched


def _what_it_may_be(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return ". It is an adapter: give its base model, or merge it first (`mft export`)"
    inner = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
    return f". Did you mean {path / inner[0]}?" if inner else ""


def read_model_config(path: Path, *, name: str, trust_remote_code: bool) -> Any:
    """transformers' config of the folder; ModelError for a broken one or one that is no causal language model."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ModelError(f"{path / 'config.json'}: {_why_unreadable(path, error, trust_remote_code)}") from error
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name}: model type '{config.model_type}' is not a causal language model, which is what can be trained here"
        )
    return config


def _why_unreadable(path: Path, error: Exception, trust_remote_code: bool) -> str:
    raw = read_json(path / "config.json")
    if not isinstance(raw, dict) or "model_type" not in raw:
        return "names no model_type, so it is not a transformers model; look at the folder, or download the model again"
    if "auto_map" in raw and not trust_remote_code:
        return (
            f"model type '{raw['model_type']}' comes with Python code of its own. Set model.trust_remote_code: true to run it, "
            "if you know its author"
        )
    first = str(error).strip().splitlines()[0]
    if "does not recognize this architecture" in str(error):
        return (
            f"unknown architecture '{raw['model_type']}'. A newer transformers may know it: pip install -U transformers"
        )
    return f"cannot be used: {first}"


def weight_problems(path: Path, *, allow_pickled: bool) -> Iterator[str]:
    """What is wrong with the weight files of a local folder: missing, pickled only, cut short."""
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        pickled = [file.name for pattern in hub.PICKLED_WEIGHTS for file in sorted(path.glob(pattern))]
        if pickled and not allow_pickled:
            yield (
                f"{path}: has only pickled weights ({pickled[0]}), which can run code when loaded. Take a safetensors version, "
                "or set model.use_safetensors: false if you know where they come from"
            )
        elif not pickled:
            yield f"{path}: has no weights (*.safetensors); download the model again"
        return
    if (path / INDEX).is_file():
        wanted = sorted(set(read_json(path / INDEX)["weight_map"].values()))
        yield from (
            f"{path / name}: is missing; {INDEX} names it. Download it again"
            for name in wanted
            if not (path / name).is_file()
        )
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{shard}: is damaged or cut short ({error}). Download it again"


def tokenizer_problems(name: str, *, vocab_size: int) -> Iterator[str]:
    """What is wrong with the tokenizer `name` (a folder, a Hub id) for a model whose embedding has `vocab_size` rows."""
    try:
        tokenizer = load_tokenizer(name)
    except ModelError as error:
        yield from error.problems
        return
    if tokenizer.vocab_size > vocab_size:
        yield (
            f"{name}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model's embedding only {vocab_size:,} rows. They do "
            "not belong together: check model.tokenizer_name_or_path"
        )


def count_parameters(
    model_config: Any,
    adapter: AdapterConfig | None = None,
    *,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> ParameterCount:
    """Weights in all and trained, from the config alone: the model is built on the meta device, where nothing takes memory."""
    from mftcoder.models.adapters import attach

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
        quantizable = quantizable_weights(model)
        if adapter is not None:
            model = attach(model, adapter, quantization=quantization)
    sizes = {id(parameter): (parameter.numel(), parameter.requires_grad) for parameter in model.parameters()}
    return ParameterCount(
        total=sum(size for size, _ in sizes.values()),
        trainable=sum(size for size, trained in sizes.values() if trained),
        quantizable=quantizable,
    )


def _vocab_size(model_config: Any) -> int:
    return int(model_config.get_text_config().vocab_size)
