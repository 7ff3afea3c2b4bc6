"""The weight files of a model folder: which are read, which tensors they hold, and whether these fit the model.

Only headers are read: the model and the tensors are on the meta device. From pickled files only plain tensors are taken; no code in
them is run.
"""

import copy
import functools
import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as transformers_logging

from mftcoder.errors import ModelError, reason
from mftcoder.jsonl import read_json, write_json
from mftcoder.models.files.download import PICKLED_WEIGHTS

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_WHOLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
COMPUTED = (".inv_freq", ".masked_bias", ".attn.bias", ".logn_tensor")
"""Suffixes of tensors in old checkpoints that the model computes by itself."""
SHARD_BYTES = 4 * 2**30
SHOWN = 3
MOST_LAYERS = 10_000
"""A config with more layers is damaged, and building them would fill the memory."""
Shapes = Mapping[str, Sequence[int]]
_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_BUILDING = threading.RLock()


@contextmanager
def building() -> Iterator[None]:
    """Other threads that make a model wait: transformers sets torch's default dtype, which is the process's, while it makes one."""
    with _BUILDING:
        yield


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file that is not read yet."""

    path: Path
    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    dtype: str = ""  # as a .safetensors file names it; empty for other files


@dataclass(frozen=True)
class Fit:
    """How well the tensors of a checkpoint fit a model."""

    problems: tuple[str, ...]  # weights that are missing or have the wrong shape
    unused: tuple[str, ...]  # tensors that the model does not have


def weight_files(folder: Path, *, allow_pickled: bool) -> list[Path]:
    """The files that transformers reads from `folder`. ModelError if there are none, or if the index names a file that is missing."""
    layouts = [(WHOLE, INDEX), *([(PICKLED_WHOLE, PICKLED_INDEX)] if allow_pickled else [])]
    for whole, index in layouts:
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _indexed(folder / index)
    raise ModelError(_no_weights(folder, allow_pickled=allow_pickled))


def _indexed(index: Path) -> list[Path]:
    raw = read_json(index)
    named = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{index}: names no weight file (it has no weight_map). Download it again")
    files = [index.parent / name for name in sorted(set(named.values()))]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ModelError(*(f"{path}: is missing; {index.name} names it. Download it again" for path in missing))
    if not isinstance(raw.get("metadata"), dict):
        raise ModelError(f'{index}: has no "metadata", which transformers requires. Add "metadata": {{}} to it')
    return files


def _no_weights(folder: Path, *, allow_pickled: bool) -> str:
    pickled = [path.name for pattern in PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))]
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    if loose:
        return f"{folder}: has weights ({loose[0]}) but no {INDEX} that lists them. Download it, too"
    if pickled and not allow_pickled:
        return (
            f"{folder}: has only pickled weights ({pickled[0]}), which can run code when loaded. Use a safetensors version, "
            "or set model.use_safetensors: false if you trust their source"
        )
    if pickled:
        return f"{folder}: has neither {PICKLED_WHOLE} nor {PICKLED_INDEX}, so its pickled weights cannot be read"
    return f"{folder}: has no weights (*.safetensors); download the model again"


def all_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor over all files. ModelError with a line for each file that cannot be read, or repeats a tensor."""
    found: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for path in files:
        try:
            tensors = list(_safe_tensors(path) if path.suffix == ".safetensors" else _pickled_tensors(path))
        except ModelError as error:
            problems += error.problems
            continue
        if twice := [tensor.name for tensor in tensors if tensor.name in found]:
            first = found[twice[0]].path.name
            problems.append(
                f"{path}: holds {listed(twice)}, which {first} also holds. Keep one of them: it is unknown which is right"
            )
        found |= {tensor.name: tensor for tensor in tensors}
    if problems:
        raise ModelError(*problems)
    return found


def stored_dtype(folder: Path) -> str | None:
    """The dtype of most numbers in the .safetensors files of a folder, as torch names it; None if it has none of 16 or 32 bits."""
    counts: Counter[str] = Counter()
    for tensor in all_tensors(weight_files(folder, allow_pickled=False)).values():
        if tensor.dtype in _FLOATS:
            counts[_FLOATS[tensor.dtype]] += math.prod(tensor.shape)
    return max(counts, key=counts.__getitem__, default=None)


def _safe_tensors(path: Path) -> Iterator[StoredTensor]:
    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored = file.get_slice(name)
                yield StoredTensor(
                    path, name, tuple(stored.get_shape()), functools.partial(read, name), stored.get_dtype()
                )
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is damaged or truncated ({error}). Download it again") from error


def _pickled_tensors(path: Path) -> Iterator[StoredTensor]:
    on_cpu = functools.cache(lambda: _unpickle(path, "cpu"))
    for name, tensor in _unpickle(path, "meta").items():
        if isinstance(tensor, Tensor):
            yield StoredTensor(path, name, tuple(tensor.shape), functools.partial(lambda key: on_cpu()[key], name))


def _unpickle(path: Path, device: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # the format that can be mapped into memory
        held = torch.load(path, map_location=device, weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise ModelError(
                f"{path}: holds Python objects beside its weights. They could run code, so it is not read. Use a "
                "safetensors version of the model"
            ) from error
        raise ModelError(f"{path}: is damaged or truncated. Download it again") from error
    except Exception as error:  # a damaged file ends in errors of zipfile, pickle and torch
        raise ModelError(f"{path}: is damaged or truncated. Download it again") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path}: holds a {type(held).__name__}, not a table of weights")
    return held


def write_weight_files(tensors: Iterable[tuple[str, Tensor]], out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors into safetensors files of at most `shard_bytes`, with an index if they are several. One file is in memory at most."""
    shards: list[dict[str, int]] = []  # of each file: name -> bytes
    for shard in _sharded(tensors, shard_bytes):
        path = out / f"{len(shards)}.part"
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
    numbers = range(1, len(shards) + 1)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in numbers] if len(shards) > 1 else [WHOLE]
    for number, name in enumerate(names):
        (out / f"{number}.part").rename(out / name)
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(size for shard in shards for size in shard.values())
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _sharded(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file. A file's tensors are freed when the next one is asked for."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard.clear()
        shard[name] = tensor
    yield shard


@building()
def meta_model(model_config: Any, *, where: Path | str, trust_remote_code: bool = False) -> Any:
    """The model of a config on the meta device, without weights in memory. ModelError if the config is not usable."""
    layers = getattr(model_config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ModelError(f"{where}: no model can be made from these values: {layers:.3g} layers are too many")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    except Exception as error:  # constructors raise many kinds for inconsistent values
        raise ModelError(f"{where}: no model can be made from these values: {reason(error)}") from error


@building()
def fit(model: Any, shapes: Shapes, *, where: Path) -> Fit:
    """Compare names and shapes with `model` (on the meta device); transformers' loader matches layouts that differ."""
    if getattr(model.config, "quantization_config", None):
        return Fit((), ())  # quantized weights have other names and shapes, which only their library knows
    saved = revert_weight_conversion(model, model.state_dict())
    needed = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes == needed:
        return Fit((), ())
    state = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    try:
        with _quiet():
            _, info = type(model).from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                state_dict=state,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="meta",
            )
    except Exception as error:
        if not type(model).__module__.startswith("transformers."):
            return Fit((), ())  # the model's own code may load differently; the loader then names what is missing
        if not isinstance(error, RuntimeError):
            raise
        # Tensors that are stacked while loading (experts) do not match each other.
        wrong = {name: (shapes[name], needed[name]) for name in needed.keys() & shapes.keys()}
        return Fit(_problems(where, needed.keys() - shapes.keys(), wrong), _unused(shapes.keys() - needed.keys()))
    wrong = {name: (stored, shape) for name, stored, shape in info["mismatched_keys"]}
    return Fit(_problems(where, info["missing_keys"], wrong), _unused(info["unexpected_keys"]))


def _unused(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if not name.endswith(COMPUTED)))


def _problems(
    where: Path, missing: Iterable[str], wrong: Mapping[str, tuple[Sequence[int], Sequence[int]]]
) -> tuple[str, ...]:
    lines = []
    names = sorted(missing)
    wrong = {name: sizes for name, sizes in wrong.items() if tuple(sizes[0]) != tuple(sizes[1])}
    if names:
        lines.append(
            f"{where}: its files lack {len(names)} of the model's weights: {listed(names)}. They would be random numbers; download "
            "the model again"
        )
    for name, (stored, needed) in sorted(wrong.items())[:SHOWN]:
        lines.append(f"{where}: {name} is {_size(stored)} in the files, but {_size(needed)} by config.json")
    if len(wrong) > SHOWN:
        lines.append(f"{where}: {len(wrong) - SHOWN} more weights do not have the shape given by config.json")
    return tuple(lines)


def listed(names: Sequence[str]) -> str:
    """The first few names and the number of others: `a, b, c and 4 more`."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off transformers' own report of mismatches and its progress bar."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
