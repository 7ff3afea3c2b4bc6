"""Checkpoints of families that transformers does not hold become checkpoints of families it does, once, in the cache.

Goes in: a folder in the original layout (config.json and weights; its Python code is never run). Comes out: a native folder that
computes the same function, so that packing, adapters, merging and generation need to know nothing of it. What cannot be
converted exactly is refused with the reason. One module a family; the formulas are in each.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mftcoder.data.tokenizer import FILES, load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import atomic_folder, read_json, write_json
from mftcoder.models import hub

Config = Mapping[str, Any]
FAMILIES = {
    "qwen": "mftcoder.models.convert_qwen1",
    "baichuan": "mftcoder.models.convert_baichuan",
    "chatglm": "mftcoder.models.convert_chatglm",
    "aquila": "mftcoder.models.convert_aquila",
}
"""model_type of the original checkpoint to the module with its CONVERSION."""

SHARD_BYTES = 4 * 2**30
BUFFERS = ("inv_freq", "masked_bias", "logn_tensor")
"""Ends of names of tensors that a model computes by itself."""


@dataclass(frozen=True)
class Conversion:
    """How one family becomes another. `config` raises ValueError with the reason if it cannot, exactly."""

    config: Callable[[Config, Path], dict[str, Any]]  # original config and its folder -> native config
    tensors: Callable[
        [str, Tensor, Config], Mapping[str, Tensor]
    ]  # original tensor -> native ones; KeyError if unknown


def needs_conversion(folder: Path) -> bool:
    """Whether the folder holds one of FAMILIES."""
    raw = read_json(folder / "config.json")
    return isinstance(raw, dict) and raw.get("model_type") in FAMILIES


def converted(folder: Path, *, name: str, pickled: bool) -> Path:
    """The native folder of an original one, made on first use. ModelError if that is impossible, or its weights are pickled only."""
    raw = read_json(folder / "config.json")
    conversion: Conversion = importlib.import_module(FAMILIES[raw["model_type"]]).CONVERSION
    try:
        config = conversion.config(raw, folder)
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    files = _weight_files(folder, name=name, pickled=pickled)
    target = hub.models_cache() / f"{raw['model_type']}-{_key(folder, files)}"
    if not (target / "config.json").is_file():
        with atomic_folder(target) as temporary:
            _write_weights(files, temporary, conversion, raw)
            _copy_tokenizer(folder, temporary)
            write_json(temporary / "config.json", {**config, "dtype": _dtype(raw)})
    return target


def _weight_files(folder: Path, *, name: str, pickled: bool) -> list[Path]:
    safe = sorted(folder.glob("*.safetensors"))
    loose = sorted(path for pattern in ("pytorch_model*.bin", "*.pt") for path in folder.glob(pattern))
    if safe or (loose and pickled):
        return safe or loose
    if loose:
        raise ModelError(
            f"{name}: has only pickled weights ({loose[0].name}), which can run code when loaded. Set "
            "model.use_safetensors: false if you know where they come from; they are converted to safetensors once"
        )
    raise ModelError(f"{name}: has no weights (*.safetensors); download the model again")


def _key(folder: Path, files: list[Path]) -> str:
    """Of the config, and of names, sizes and times of the weights and tokenizer files."""
    digest = xxhash.xxh3_128((folder / "config.json").read_bytes())
    for path in [*files, *sorted(folder.glob("*token*")), *sorted(folder.glob("*.py"))]:
        stat = path.stat()
        digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]


def _dtype(raw: Config) -> str:
    return str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    else:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def _write_weights(files: list[Path], out: Path, conversion: Conversion, raw: Config) -> None:
    """Convert tensor by tensor; at most one shard is in memory."""
    shard: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    total = 0

    def flush() -> None:
        file_name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, out / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
        shard.clear()

    for path in files:
        for original, tensor in _tensors(path):
            for name, part in _native(original, tensor, conversion, raw, path).items():
                shard[name] = part.contiguous().clone()
                total += part.nbytes
            if sum(held.nbytes for held in shard.values()) > SHARD_BYTES:
                flush()
    if shard:
        flush()
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _native(name: str, tensor: Tensor, conversion: Conversion, raw: Config, path: Path) -> Mapping[str, Tensor]:
    if name.endswith(BUFFERS):
        return {}
    try:
        return conversion.tensors(name, tensor, raw)
    except KeyError as error:
        raise ModelError(
            f"{path}: holds a weight {name}, which a {raw['model_type']} model has not; it cannot be converted"
        ) from error


def _copy_tokenizer(folder: Path, out: Path) -> None:
    """The fast tokenizer, where there is one or one can be made; without it the user must name another."""
    try:
        found = Path(load_tokenizer(str(folder)).folder)
    except ModelError:
        return
    for name in FILES:
        if (found / name).is_file() and name != "config.json":
            (out / name).write_bytes((found / name).read_bytes())
    settings = out / "tokenizer_config.json"
    if settings.is_file():
        content = json.loads(settings.read_text(encoding="utf-8"))
        content.pop("auto_map", None)
        write_json(settings, {**content, "tokenizer_class": "PreTrainedTokenizerFast"})
