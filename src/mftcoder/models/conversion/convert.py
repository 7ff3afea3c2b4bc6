"""Convert checkpoints of families that transformers does not support into families that it supports, once, in the cache.

The native folder computes the same function, so packing, adapters, merging and generation need no special cases. Python code of the
original is read where it decides something, but never run. What cannot be converted exactly is refused with the reason, before a
weight is read. `recipes.py` has the recipe of each family, with its formulas.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from mftcoder import cache
from mftcoder.data.tokenizers.converted import MADE_BY
from mftcoder.data.tokenizers.tokenizer import FILES, load_tokenizer
from mftcoder.errors import MftError, ModelError, reason
from mftcoder.jsonl import atomic_folder, locked, read_json, write_json
from mftcoder.models.conversion import recipes
from mftcoder.models.conversion.recipes import RECIPES, Config, Recipe
from mftcoder.models.files import download
from mftcoder.models.files.weights import (
    COMPUTED,
    SHARD_BYTES,
    StoredTensor,
    all_tensors,
    fit,
    listed,
    meta_model,
    weight_files,
    write_weight_files,
)

SETTINGS = ("config.json", "generation_config.json")


def needs_conversion(folder: Path) -> bool:
    """Whether the folder holds a model of one of RECIPES."""
    raw = read_json(folder / "config.json")
    return isinstance(raw, dict) and raw.get("model_type") in RECIPES


def converted(folder: Path, *, name: str, pickled: bool) -> Path:
    """The native folder of an original one, made on first use. ModelError if that is impossible."""
    raw = read_json(folder / "config.json")
    recipe = _recipe(raw, folder, name)
    files = weight_files(folder, allow_pickled=pickled)
    beside = [path for pattern in ("*token*", "*.json", "*.py", "*.jinja") for path in sorted(folder.glob(pattern))]
    key = cache.key(sys.modules[__name__], recipes, *MADE_BY, *files, *beside)
    target = download.models_cache() / f"{recipe.family}-{key}"

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


def _recipe(raw: Config, folder: Path, name: str) -> Recipe:
    try:
        recipe = RECIPES[raw["model_type"]](raw, folder)
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
    """Convert tensor by tensor into safetensors files, and write the config."""
    parts = (part for tensor in tensors for part in _parts(tensor, tensor.read(), recipe).items())
    write_weight_files(((name, part.contiguous().clone()) for name, part in parts), out, shard_bytes=shard_bytes)
    write_json(out / "config.json", recipe.config)


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
