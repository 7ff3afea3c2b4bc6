"""Write a model folder as one .gguf file: plain, or in blocks that the gguf package quantizes; K-quants by llama.cpp's `llama-quantize`.

Tensors are read, quantized and written one after the other, so that one of them is in memory.
"""

import importlib.util
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mftcoder.data.tokenizers.gguf_fields import tokenizer_fields
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json
from mftcoder.models.export.quantized.gguf_layout import Layout, PlannedTensor, layout
from mftcoder.models.files.weights import all_tensors, weight_files

WRITTEN_HERE = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types that the gguf package quantizes."""
BY_LLAMA_CPP = (
    "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
"""Types that only llama.cpp's program quantizes."""
PROGRAM = "llama-quantize"
HEAD = "Q8_0"
"""The type of the output head (or of the embedding that is tied to it) in files of fewer bits; it is worth more than other matrices."""


def check_gguf_package() -> None:
    """ModelError without the gguf package."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("writing .gguf files needs the gguf package: pip install 'mftcoder[gguf]'")


def find_program(given: str | None, type_name: str) -> Path:
    """llama.cpp's `llama-quantize`. ModelError if it is not there."""
    found = shutil.which(given or PROGRAM)
    if found is None:
        where = f"{given} is not a program" if given else f"{PROGRAM} is not on the PATH"
        raise ModelError(
            f"gguf:{type_name}: is quantized by llama.cpp's {PROGRAM}, and {where}. Install llama.cpp and give --llama-quantize FILE, or "
            f"choose one of {', '.join(f'gguf:{name}' for name in WRITTEN_HERE)}"
        )
    return Path(found)


def write_gguf(
    folder: Path, out: Path, type_name: str, *, ends: frozenset[int] = frozenset(), program: Path | None = None
) -> tuple[str, ...]:
    """Write the model of `folder` into the file `out`, and return notes for the user.

    `ends` are the tokens that end an answer. `program` is llama-quantize, for the types that only it makes.
    """
    if program is None:
        return _write(folder, out, type_name, ends)
    plain = out.with_suffix(".whole")
    try:
        notes = _write(folder, plain, _own_type(folder), ends)
        done = subprocess.run([program, plain, out, type_name], capture_output=True, text=True, check=False)
    finally:
        plain.unlink(missing_ok=True)
    if done.returncode or not out.is_file():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"{program}: failed (exit code {done.returncode}): {lines[-1] if lines else 'it printed nothing'}"
        )
    return notes


def _own_type(folder: Path) -> str:
    """The type that holds the folder's weights without loss."""
    dtype = str(read_json(folder / "config.json").get("dtype")).removeprefix("torch.")
    return {"float16": "F16", "bfloat16": "BF16"}.get(dtype, "F32")


def _write(folder: Path, out: Path, type_name: str, ends: frozenset[int]) -> tuple[str, ...]:
    import gguf

    plan = layout(folder, all_tensors(weight_files(folder, allow_pickled=False)))
    types = {tensor.name: _type_of(tensor, type_name, plan) for tensor in plan.tensors}
    _check_blocks(folder, plan, types)
    writer = gguf.GGUFWriter(out, plan.architecture)
    try:
        _add_metadata(writer, folder, plan, type_name, ends)
        for tensor in plan.tensors:
            _add_info(writer, tensor, types[tensor.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            writer.write_tensor_data(_quantized(folder, tensor, types[tensor.name]))
    finally:
        writer.close()
    return plan.notes


def _type_of(tensor: PlannedTensor, type_name: str, plan: Layout) -> str:
    """Vectors stay in float32, and so do the matrices that llama.cpp does not quantize."""
    if not tensor.is_matrix:
        return "F32"
    head = "output.weight" if any(one.name == "output.weight" for one in plan.tensors) else "token_embd.weight"
    in_blocks = type_name not in ("F32", "F16", "BF16")
    return HEAD if in_blocks and tensor.name == head else type_name


def _check_blocks(folder: Path, plan: Layout, types: Mapping[str, str]) -> None:
    """ModelError for rows that no whole number of blocks holds."""
    odd = [tensor for tensor in plan.tensors if tensor.shape[-1] % _block(types[tensor.name])]
    if odd:
        first, kind = odd[0], types[odd[0].name]
        raise ModelError(
            f"{folder}: {first.name} has {first.shape[-1]} columns, and {kind} holds blocks of {_block(kind)} "
            f"({len(odd)} such tensors). Choose gguf:F16"
        )


def _block(kind: str) -> int:
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])


def _add_info(writer: Any, tensor: PlannedTensor, kind: str) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    columns = tensor.shape[-1] // gguf.GGML_QUANT_SIZES[number][0] * gguf.GGML_QUANT_SIZES[number][1]
    size = math.prod(tensor.shape[:-1]) * columns
    writer.add_tensor_info(tensor.name, (*tensor.shape[:-1], columns), np.dtype(np.uint8), size, raw_dtype=number)


def _quantized(folder: Path, tensor: PlannedTensor, kind: str) -> NDArray[np.uint8]:
    """The bytes of a tensor. ModelError for values that are not finite, or too large for float16."""
    import gguf

    values = np.ascontiguousarray(tensor.read().numpy())
    if not np.isfinite(values).all():
        raise ModelError(f"{folder}: {tensor.name} holds values that are not finite; the model is broken")
    if kind == "F16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ModelError(f"{folder}: {tensor.name} holds values too large for F16. Choose gguf:BF16 or gguf:Q8_0")
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)


def _add_metadata(writer: Any, folder: Path, plan: Layout, type_name: str, ends: frozenset[int]) -> None:
    import gguf

    writer.add_name(folder.name)
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(type_name, f"MOSTLY_{type_name}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in plan.keys.items():
        _add(writer, f"{plan.architecture}.{key}", value)
    tokenizer = load_tokenizer(str(folder))
    fields = tokenizer_fields(tokenizer, plan.keys["vocab_size"])
    others = sorted(ends - {tokenizer.eos_id})
    if others:
        fields["eot_token_id"] = others[0]
    for key, value in fields.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
