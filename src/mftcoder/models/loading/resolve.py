"""Find the model of a config and check whether it can be trained, without loading its weights.

Only configs, tokenizers and the headers of weight files are read. A ModelError lists all problems with their remedies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import MftError, ModelError, reason
from mftcoder.jsonl import read_json
from mftcoder.models.conversion import convert, gguf
from mftcoder.models.files import download
from mftcoder.models.files.weights import Fit, all_tensors, fit, listed, meta_model, weight_files
from mftcoder.models.layers.quantize import quantizable_layers, quantizable_weights, quantization_problems
from mftcoder.models.loading.stored_bits import stored_method


@dataclass(frozen=True)
class ResolvedModel:
    """A base model that exists, in a folder in Hugging Face layout."""

    name: str  # as the user wrote it
    path: Path  # folder with config.json; for a Hub id the snapshot, which may not have its weights yet
    config: Any  # transformers' PretrainedConfig
    parameters: int  # weights, shared ones counted once
    unused: tuple[str, ...] = ()  # tensors of its files that the model does not have

    @property
    def unused_line(self) -> str:
        """A warning about tensors of the files that the model does not have; empty if there are none."""
        if not self.unused:
            return ""
        return f"{self.path}: its files hold {len(self.unused)} tensors that the model does not have; they are not read: {listed(self.unused)}"


@dataclass(frozen=True)
class ParameterCount:
    """The number of weights of a model, and how many of them train."""

    total: int
    trainable: int
    quantizable: int  # weights that model.quantization would quantize
    linear: int  # weights of all linear layers but the head


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """The model of `config`, checked without loading its weights. ModelError lists all problems."""
    name = config.model_name_or_path
    path = local_folder(name, weights=False, pickled=not config.use_safetensors)
    model_config = read_model_config(path, name=name, trust_remote_code=config.trust_remote_code)
    model = meta_model(model_config, where=path / "config.json", trust_remote_code=config.trust_remote_code)
    fitting = Fit((), ())
    problems = [*quantization_problems(config.quantization, model_config, name=name)]
    try:
        quantizable_layers(model, config.quantization, config.modules_to_not_convert)
    except ModelError as error:
        problems += error.problems
    try:
        if Path(name).expanduser().exists():
            fitting = folder_fit(path, model, allow_pickled=not config.use_safetensors)
            problems += fitting.problems
    except MftError as error:
        problems += error.problems
    problems += tokenizer_problems(
        config.tokenizer_name_or_path or name, vocab_size=int(model_config.get_text_config().vocab_size)
    )
    if problems:
        raise ModelError(*problems)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ResolvedModel(name, path, model_config, parameters, fitting.unused)


def weights_of(config: ModelConfig) -> list[Path]:
    """The weight files of a model, sorted."""
    pickled = not config.use_safetensors
    folder = local_folder(config.model_name_or_path, weights=True, pickled=pickled)
    return sorted(weight_files(folder, allow_pickled=pickled))


def folder_fit(path: Path, model: Any, *, allow_pickled: bool) -> Fit:
    """How well the weight files of a local folder fit the model of its config. ModelError if they cannot be read.

    Also if they hold quantized weights and the config does not say how: transformers would take the packed numbers for weights.
    """
    tensors = all_tensors(weight_files(path, allow_pickled=allow_pickled))
    packed = [
        tensor.name
        for tensor in tensors.values()
        if tensor.name.endswith("weight") and tensor.dtype not in ("", "F64", "F32", "F16", "BF16")
    ]
    if packed and stored_method(model.config) is None:
        raise ModelError(
            f"{path}: its files hold quantized weights ({listed(packed)}), but config.json has no quantization_config that says how to "
            "read them. Download the model again"
        )
    return fit(model, {name: tensor.shape for name, tensor in tensors.items()}, where=path)


def local_folder(name: str, *, weights: bool, pickled: bool = False) -> Path:
    """The native folder for a path, a .gguf file or a Hub id; other formats are converted once into the cache."""
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
    fetched = download.fetch(name, weights=weights, pickled=pickled)
    if convert.needs_conversion(fetched):
        whole = download.fetch(name, weights=True, pickled=pickled)
        return convert.converted(whole, name=name, pickled=pickled)
    return fetched


def _what_it_may_be(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return ". It is an adapter: give its base model, or merge it first (`mft export`)"
    inner = sorted(path.glob("*.gguf")) or sorted(
        child for child in path.iterdir() if (child / "config.json").is_file()
    )
    return f". Did you mean {inner[0]}?" if inner else ""


def read_model_config(path: Path, *, name: str, trust_remote_code: bool) -> Any:
    """transformers' config of the folder; ModelError if it is invalid or not that of a causal language model."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers checks the values of a config in many ways
        raise ModelError(f"{path / 'config.json'}: {_why_unreadable(path, error, trust_remote_code)}") from error
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name}: model type '{config.model_type}' is not a causal language model; only those can be trained here"
        )
    return config


def _why_unreadable(path: Path, error: Exception, trust_remote_code: bool) -> str:
    raw = read_json(path / "config.json")
    if not isinstance(raw, dict) or "model_type" not in raw:
        return "names no model_type, so it is not a transformers model; look at the folder, or download the model again"
    if "auto_map" in raw and not trust_remote_code:
        return (
            f"model type '{raw['model_type']}' comes with its own Python code. Set model.trust_remote_code: true to run it, "
            "if you trust its author"
        )
    if "does not recognize this architecture" in str(error):
        return (
            f"unknown architecture '{raw['model_type']}'. A newer transformers may know it: pip install -U transformers"
        )
    return f"cannot be used: {reason(error)}"


def tokenizer_problems(name: str, *, vocab_size: int) -> Iterator[str]:
    """The problems of the tokenizer `name` (a folder or Hub id) with a model whose embedding has `vocab_size` rows."""
    try:
        tokenizer = load_tokenizer(name)
    except MftError as error:
        yield from error.problems
        return
    if tokenizer.vocab_size > vocab_size:
        yield (
            f"{name}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model's embedding only {vocab_size:,} rows. They do "
            "not belong together: check model.tokenizer_name_or_path"
        )


def planned_model(
    model_config: Any,
    adapter: AdapterConfig | None,
    *,
    quantization: str | None = None,
    kept: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> tuple[Any, int, int]:
    """`(the model that will train, the number of weights that model.quantization would quantize, and of all linear layers)`.

    `kept` names the layers that model.modules_to_not_convert leaves out. The model is built on the meta device, so its weights take no memory.
    """
    from mftcoder.models.layers.adapters import attach

    model = meta_model(
        model_config, where=model_config.name_or_path or "config.json", trust_remote_code=trust_remote_code
    )
    quantizable, linear = quantizable_weights(model, quantization, kept), quantizable_weights(model)
    if adapter is not None:
        with torch.device("meta"):
            model = attach(model, adapter, quantization=quantization)
    return model, quantizable, linear


def count_weights(model: Any, quantizable: int, linear: int) -> ParameterCount:
    """The number of weights of a model; shared ones count once."""
    sizes = {id(parameter): (parameter.numel(), parameter.requires_grad) for parameter in model.parameters()}
    return ParameterCount(
        total=sum(size for size, _ in sizes.values()),
        trainable=sum(size for size, trained in sizes.values() if trained),
        quantizable=quantizable,
        linear=linear,
    )
