"""A model and a tokenizer that the caller has loaded already, taken in place of those that a config names.

A run writes the name of its base model, not its weights, wherever an adapter is trained over it. So a model that is given is
compared with the files of that name, tensor by tensor: another one would be exported as what it was not.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mftcoder.config.schema import ModelConfig
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import atomic_folder
from mftcoder.models.files.weights import listed, weight_files
from mftcoder.models.loading.load import DTYPES
from mftcoder.models.loading.resolve import local_folder


def check_settings(model: Any, config: ModelConfig) -> None:
    """ModelError if a model that is given is not as the config's model section says."""
    problems = []
    if config.quantization is not None:
        problems.append(
            f"model.quantization: {config.quantization}: a model that is given is trained as it is; set it to null"
        )
    if (found := {parameter.dtype for parameter in model.parameters()}) != {DTYPES[config.dtype]}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        problems.append(
            f"model.dtype: {config.dtype}: the model that is given is in {names}; set it, or convert the model"
        )
    if problems:
        raise ModelError(*problems)


def check_same_weights(model: Any, config: ModelConfig) -> None:
    """ModelError unless the model has exactly the weights in the files of `model_name_or_path`."""
    name = config.model_name_or_path
    stored = _stored(weight_files(local_folder(name, weights=True), allow_pickled=False))
    own = _by_storage(model)
    different = sorted(
        names[0]
        for names, weight in own
        if not any(other in stored and _equal(stored[other], other, weight) for other in names)
    )
    if different:
        raise ModelError(
            f"the model that is given has other weights than {name}, which the run would name as its base: "
            f"{listed(different)}. Save it with save_pretrained, and name that folder in model.model_name_or_path"
        )


def _stored(files: list[Path]) -> dict[str, Path]:
    """Tensor -> the file that holds it; none for pickled files."""
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _by_storage(model: Any) -> list[tuple[list[str], Tensor]]:
    """Each weight with all its names: tied weights have several, of which a file holds one."""
    weights: dict[int, tuple[list[str], Tensor]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        weights.setdefault(id(weight), ([], weight))[0].append(name)
    return list(weights.values())


def _equal(path: Path, name: str, weight: Tensor) -> bool:
    with safe_open(path, framework="pt") as file:
        stored = file.get_tensor(name)
    return stored.shape == weight.shape and torch.equal(stored.to(weight.dtype), weight.detach().cpu())


def take(model: Any, *, attn_implementation: str, device: torch.device | str) -> Any:
    """The model as `load_model` gives one: on the device, without a key-value cache, in evaluation mode."""
    try:
        model.set_attn_implementation(attn_implementation)
    except (ValueError, ImportError) as error:
        raise ModelError(f"{type(model).__name__} cannot take attention '{attn_implementation}': {error}") from error
    model.config.use_cache = False
    return model.to(device).eval()


def save_tokenizer(tokenizer: Any, folder: Path) -> Tokenizer:
    """Write a transformers tokenizer to `folder` and read it as a run does. ModelError if another one lies there."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"tokenizer: {type(tokenizer).__name__} has no tokenizer.json; load it with use_fast=True")
    with TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        given = load_tokenizer(temporary)
        with atomic_folder(folder) as new:
            shutil.copytree(temporary, new, dirs_exist_ok=True)
    saved = load_tokenizer(str(folder))
    if saved.fingerprint != given.fingerprint:
        raise ModelError(f"{folder}: holds another tokenizer than the one that is given. Choose another output_dir")
    return saved
