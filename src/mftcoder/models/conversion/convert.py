"""Convert checkpoints of families that transformers does not support into families that it supports, once, in the cache.

The native folder computes the same function, so packing, adapters, merging and generation need no special cases. Python code of the
original is read where it decides something, but never run. What cannot be converted exactly is refused with the reason, before a
weight is read. The recipe of each family, with its formulas, is in a module beside this one.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from mftcoder import cache
from mftcoder.data.tokenizers.converted import MADE_BY
from mftcoder.data.tokenizers.tokenizer import FILES, load_tokenizer
from mftcoder.errors import MftError, ModelError, reason
from mftcoder.jsonl import atomic_folder, locked, read_json, write_json
from mftcoder.models.files import download
from mftcoder.models.files.weights import (
    COMPUTED,
    INDEX,
    WHOLE,
    StoredTensor,
    all_tensors,
    fit,
    listed,
    meta_model,
    weight_files,
)

Config = Mapping[str, Any]
Native = Callable[[str, Tensor], Mapping[str, Tensor]]
"""Name and value of an original tensor -> the native tensors. KeyError if the family has no such tensor."""

FAMILIES = {
    "qwen": "mftcoder.models.conversion.qwen1:qwen",
    "baichuan": "mftcoder.models.conversion.to_llama:baichuan",
    "chatglm": "mftcoder.models.conversion.chatglm:chatglm",
    "aquila": "mftcoder.models.conversion.to_llama:aquila",
}
"""model_type of the original checkpoint to "module:function"; the function makes the recipe from a config and its folder. It raises
ValueError with the reason if the model cannot be converted exactly."""

SHARD_BYTES = 4 * 2**30
SETTINGS = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Recipe:
    """How to convert one checkpoint."""

    family: str  # the original's, for messages
    config: dict[str, Any]  # the native model's
    tensors: Native


def needs_conversion(folder: Path) -> bool:
    """Whether the folder holds one of FAMILIES."""
    raw = read_json(folder / "config.json")
    return isinstance(raw, dict) and raw.get("model_type") in FAMILIES


def converted(folder: Path, *, name: str, pickled: bool) -> Path:
    """The native folder of an original one, made on first use. ModelError if that is impossible."""
    raw = read_json(folder / "config.json")
    family = raw["model_type"]
    module_name, _, function = FAMILIES[family].partition(":")
    module = importlib.import_module(module_name)
    recipe = _recipe(getattr(module, function), raw, folder, name)
    files = weight_files(folder, allow_pickled=pickled)
    beside = [path for pattern in ("*token*", "*.json", "*.py", "*.jinja") for path in sorted(folder.glob(pattern))]
    target = download.models_cache() / f"{family}-{cache.key(sys.modules[__name__], module, *MADE_BY, *files, *beside)}"

    def make(temporary: Path) -> None:
        tensors = all_tensors(files).values()
        check_conversion(tensors, recipe, where=folder)
        write_native(tensors, recipe, temporary)
        _copy_settings(folder, temporary)

    return made_once(target, make)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A model folder of the cache. `make` fills it if it is missing, or if files were lost: a cache may be cleaned up file by file."""
    if _is_whole(folder):
        return folder
    with locked(folder.parent.with_suffix(".lock"), wait=True):
        if not _is_whole(folder):  # another process may have made it
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                make(temporary)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(all_tensors(weight_files(folder, allow_pickled=False)))
    except MftError:
        return False


def _recipe(make: Callable[[Config, Path], Recipe], raw: Config, folder: Path, name: str) -> Recipe:
    try:
        recipe = make(raw, folder)
    except KeyError as error:
        raise ModelError(
            f"{folder / 'config.json'}: has no {error}, which a {raw['model_type']} model needs"
        ) from error
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    except (TypeError, ArithmeticError) as error:
        raise ModelError(f"{folder / 'config.json'}: has a value of the wrong kind: {error}") from error
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    return replace(recipe, config={**recipe.config, "dtype": dtype})


def check_conversion(tensors: Iterable[StoredTensor], recipe: Recipe, *, where: Path) -> None:
    """Convert names and shapes only. ModelError if a tensor is unknown, or if the result does not match the native config."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        parts = _parts(tensor, torch.empty(tensor.shape, device="meta"), recipe)
        shapes |= {name: tuple(part.shape) for name, part in parts.items()}
    values = dict(recipe.config)
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # transformers checks the values of a config in many ways
        raise ModelError(f"{where}: no model can be made of its config: {reason(error)}") from error
    fitting = fit(meta_model(config, where=where), shapes, where=where)
    if fitting.problems:
        raise ModelError(*fitting.problems)
    if fitting.unused:
        raise ModelError(f"{where}: holds {listed(fitting.unused)}, which the model of its config does not have")


def _parts(tensor: StoredTensor, value: Tensor, recipe: Recipe) -> Mapping[str, Tensor]:
    if tensor.name.endswith(COMPUTED):
        return {}
    try:
        return recipe.tensors(tensor.name, value)
    except KeyError as error:
        raise ModelError(
            f"{tensor.path}: holds a weight {tensor.name}, which a {recipe.family} model does not have; it cannot be converted"
        ) from error
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        size = " x ".join(map(str, tensor.shape))
        raise ModelError(
            f"{tensor.path}: {tensor.name} is {size}, which does not fit the config of the model"
        ) from error


def write_native(tensors: Iterable[StoredTensor], recipe: Recipe, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Convert tensor by tensor into safetensors files, with at most one file in memory, and write the config."""
    shard: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    total = 0
    for tensor in tensors:
        parts = _parts(tensor, tensor.read(), recipe)
        size = sum(part.nbytes for part in parts.values())
        if shard and sum(held.nbytes for held in shard.values()) + size > shard_bytes:
            weight_map |= _save_part(shard, out, len(set(weight_map.values())) + 1)
            shard = {}
        shard |= {name: part.contiguous().clone() for name, part in parts.items()}
        total += size
    if weight_map:
        weight_map |= _save_part(shard, out, len(set(weight_map.values())) + 1)
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        save_file(shard, out / WHOLE, metadata={"format": "pt"})
    write_json(out / "config.json", recipe.config)


def _save_part(tensors: dict[str, Tensor], out: Path, number: int) -> dict[str, str]:
    """Write one of several weight files; returns the name of the file for each tensor."""
    file_name = f"model-{number:05}.safetensors"
    save_file(tensors, out / file_name, metadata={"format": "pt"})
    return dict.fromkeys(tensors, file_name)


def _copy_settings(folder: Path, out: Path) -> None:
    """Copy the generation config, and the fast tokenizer if there is one or one can be made."""
    if (folder / "generation_config.json").is_file():
        write_json(out / "generation_config.json", read_json(folder / "generation_config.json"))
    try:
        found = Path(load_tokenizer(str(folder)).folder)
    except MftError:
        return
    for name in FILES:
        if (found / name).is_file() and name not in SETTINGS:
            (out / name).write_bytes((found / name).read_bytes())
    settings = out / "tokenizer_config.json"
    if settings.is_file():
        content = json.loads(settings.read_text(encoding="utf-8"))
        content.pop("auto_map", None)
        write_json(settings, {**content, "tokenizer_class": "PreTrainedTokenizerFast"})
