"""A .gguf file becomes an ordinary model folder: dequantised once into the cache, weights as safetensors, tokenizer.json.

The folder is keyed by the file's content and appears under its name only when complete. Everything after this sees a folder.
Weights keep their format if the file holds plain ones; blocks of 2 to 8 bits become bfloat16, which is finer than they are.
"""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mftcoder.data.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import atomic_folder, write_json
from mftcoder.models import hub


def folder_of(file: Path) -> Path:
    """The cached model folder of a .gguf file, made on first use. ModelError if the file is missing, broken or unsupported."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file; give a model folder, a .gguf file or a Hub id")
    folder = hub.models_cache() / f"{file.stem}-{_digest(file)[:16]}"
    if not (folder / "config.json").is_file():
        with atomic_folder(folder) as temporary:
            convert(file, temporary)
    return folder


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def convert(file: Path, out: Path) -> None:
    """Write the model in `file` into the folder `out`, in Hugging Face layout."""
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"{file}: reading .gguf files needs the gguf package: pip install 'mftcoder[gguf]'") from error
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # the reader raises what numpy raises on a short or foreign file
        raise ModelError(f"{file}: is not a GGUF file, or is cut short: {error}") from error
    _save(file, out, dtype=_plain_dtype(reader))
    shutil.copytree(load_tokenizer(str(file)).folder, out, dirs_exist_ok=True)


def _save(file: Path, out: Path, *, dtype: torch.dtype) -> None:
    import transformers
    from transformers.utils import logging, quantization_config

    logging.disable_progress_bar()
    # Newer transformers keep the blocks unless told otherwise; those weights could neither be trained nor saved.
    make = getattr(quantization_config, "GgufConfig", None)
    options = {"quantization_config": make(dequantize=True)} if make else {}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, **options
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ModelError(f"{file}: cannot be converted: {str(error).strip().splitlines()[0]}") from error
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    write_json(out / "config.json", config)


def _plain_dtype(reader: Any) -> torch.dtype:
    """The format of most matrices of the file; bfloat16 for quantised ones."""
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    most = kinds.most_common(1)[0][0] if kinds else "F32"
    return {"F32": torch.float32, "F16": torch.float16}.get(most, torch.bfloat16)
