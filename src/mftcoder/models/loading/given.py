"""Use a model and a tokenizer that the caller has already loaded, instead of those in the config.

With an adapter, a run stores the name of its base model, not its weights. So a given model is compared with the files of that name,
tensor by tensor; otherwise the export could merge the adapter into other weights than those that it was trained over.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mftcoder.config.schema import ModelConfig
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import atomic_folder
from mftcoder.models.files.weights import StoredTensor, all_tensors, listed, weight_files
from mftcoder.models.loading.load import DTYPES
from mftcoder.models.loading.resolve import local_folder


def check_settings(model: Any, config: ModelConfig) -> None:
    """ModelError if a given model contradicts the config's model section."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"model: is a {type(model).__name__}; give a model of transformers, or its name in model.model_name_or_path"
        )
    problems = []
    if any(parameter.is_meta for parameter in model.parameters()):
        problems.append("model: has weights on the device meta, which hold no values; load it onto a real device")
    if config.quantization is not None:
        problems.append(f"model.quantization: {config.quantization}: a given model is not quantized; set it to null")
    if (found := {parameter.dtype for parameter in model.parameters()}) != {DTYPES[config.dtype]}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        problems.append(
            f"model.dtype: {config.dtype}: the given model is in {names}; change the setting, or convert the model"
        )
    if problems:
        raise ModelError(*problems)


def check_same_weights(model: Any, config: ModelConfig) -> None:
    """ModelError unless the model has exactly the weights in the files of `model_name_or_path`."""
    name = config.model_name_or_path
    stored = all_tensors(weight_files(local_folder(name, weights=True), allow_pickled=False))
    own = _by_storage(model)
    different = sorted(
        names[0]
        for names, weight in own
        if not any(other in stored and _equal(stored[other], weight) for other in names)
    )
    if different:
        raise ModelError(
            f"the given model has other weights than {name}, which the run would store as its base: "
            f"{listed(different)}. Save it with save_pretrained, and name that folder in model.model_name_or_path"
        )


def _by_storage(model: Any) -> list[tuple[list[str], Tensor]]:
    """Each weight with all its names; tied weights have several, and a file has only one of them."""
    weights: dict[int, tuple[list[str], Tensor]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        weights.setdefault(id(weight), ([], weight))[0].append(name)
    return list(weights.values())


def _equal(stored: StoredTensor, weight: Tensor) -> bool:
    return stored.shape == weight.shape and torch.equal(stored.read().to(weight.dtype), weight.detach().cpu())


def take(model: Any, *, attn_implementation: str, device: torch.device | str) -> Any:
    """The model in the state that `load_model` gives: on the device, without a key-value cache, in evaluation mode."""
    try:
        model.set_attn_implementation(attn_implementation)
    except (ValueError, ImportError) as error:
        raise ModelError(
            f"{type(model).__name__} does not support attention '{attn_implementation}': {error}"
        ) from error
    model.config.use_cache = False
    return model.to(device).eval()


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """Give a model back with the attention, cache setting and mode that it came with. Its weights and adapter stay as they are then."""
    if model is None:
        yield
        return
    attention, was_training = model.config._attn_implementation, model.training
    use_cache = getattr(model.config, "use_cache", None)  # None: a config without this field, such as OpenAI GPT's
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.config.use_cache = use_cache
        if use_cache is None:
            del model.config.use_cache
        model.train(was_training)


def save_tokenizer(tokenizer: Any, folder: Path) -> Tokenizer:
    """Write a transformers tokenizer to `folder` and load it as a run does. ModelError if the folder holds another one."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"tokenizer: {type(tokenizer).__name__} has no tokenizer.json; load it with use_fast=True")
    with TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        given = load_tokenizer(temporary)
        with atomic_folder(folder) as new:
            shutil.copytree(temporary, new, dirs_exist_ok=True)
    saved = load_tokenizer(str(folder))
    if saved.fingerprint != given.fingerprint:
        raise ModelError(f"{folder}: holds another tokenizer than the given one. Choose another output_dir")
    return saved
