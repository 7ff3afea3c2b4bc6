"""Convert a .gguf file into an ordinary model folder, once, in the cache.

The folder has the dequantized weights as safetensors and a tokenizer.json. Plain weights keep their dtype; blocks of 2 to 8 bits
become bfloat16, which loses nothing. `gguf_architectures` reads the model's metadata, `data.tokenizers.gguf` the tokenizer.
"""

import functools
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mftcoder import cache
from mftcoder.data.tokenizers.converted import MADE_BY
from mftcoder.data.tokenizers.gguf import opened_gguf
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import MftError, ModelError
from mftcoder.jsonl import write_json
from mftcoder.models.conversion import convert, gguf_architectures
from mftcoder.models.files import download
from mftcoder.models.files.weights import StoredTensor

TABLES = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def folder_of(file: Path) -> Path:
    """The cached model folder of a .gguf file, made on first use. ModelError if the file is missing, broken or unsupported."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file; give a model folder, a .gguf file or a Hub id")
    made_by = (sys.modules[__name__], gguf_architectures, convert, *MADE_BY)
    folder = download.models_cache() / f"{file.stem}-{cache.key(cache.content_hash(file), *made_by)}"
    return convert.made_once(folder, functools.partial(convert_file, file))


def convert_file(file: Path, out: Path) -> None:
    """Write the model in `file` into the folder `out`, in Hugging Face layout."""
    with opened_gguf(file) as reader:
        _convert(file, reader, out)
        try:
            shutil.copytree(load_tokenizer(str(file)).folder, out, dirs_exist_ok=True)
        except MftError:  # the config may name another tokenizer; loading this one repeats the error
            return


def tensor_types(file: Path) -> dict[str, int]:
    """How many tensors of a file are held in each type, the most frequent first."""
    with opened_gguf(file) as reader:
        return dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())


def is_quantized(file: Path) -> bool:
    """Whether a file holds any tensor in blocks."""
    return bool(tensor_types(file).keys() - PLAIN.keys())


def _convert(file: Path, reader: Any, out: Path) -> None:
    tensors = {tensor.name: _stored(file, tensor) for tensor in reader.tensors}
    try:
        values = {key: field.contents() for key, field in reader.fields.items() if key not in TABLES}
        recipe = gguf_architectures.recipe(values, tensors)
    except (ValueError, KeyError) as error:
        reason = f"has no tensor {error}" if isinstance(error, KeyError) else error
        raise ModelError(f"{file}: {reason}") from error
    except (TypeError, ArithmeticError) as error:
        raise ModelError(f"{file}: its metadata has a value of the wrong kind: {error}") from error
    recipe.config["dtype"] = str(_usual_dtype(reader)).removeprefix("torch.")
    convert.check_conversion(tensors.values(), recipe, where=file)
    convert.write_native(tensors.values(), recipe, out)
    _write_generation_config(values, out)


def _stored(file: Path, tensor: Any) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(file, tensor.name, shape, functools.partial(_read, file, tensor, shape))


def _read(file: Path, tensor: Any, shape: tuple[int, ...]) -> Tensor:
    import gguf

    kind = tensor.tensor_type.name
    try:
        values = np.array(tensor.data) if kind in ("F32", "F16") else gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(f"{file}: {tensor.name} is stored as {kind}, which cannot be read") from error
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape).to(PLAIN.get(kind, torch.bfloat16))


def _usual_dtype(reader: Any) -> torch.dtype:
    """The dtype of most matrices of the file; bfloat16 for quantized ones."""
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    most = kinds.most_common(1)[0][0] if kinds else "F32"
    return PLAIN.get(most, torch.bfloat16)


def _write_generation_config(values: dict[str, Any], out: Path) -> None:
    """Write the ids of the tokens that end a text, a turn or a message."""
    ends = {values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")} - {None}
    if ends:
        write_json(out / "generation_config.json", {"eos_token_id": sorted(ends)})
