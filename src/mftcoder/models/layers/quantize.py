"""Quantize the frozen base below LoRA: NF4 and LLM.int8() through bitsandbytes, e4m3 by `fp8.py`.

4 bits are NF4 with double quantization (QLoRA, arXiv 2305.14314), 8 bits are LLM.int8() (arXiv 2208.07339). Only linear layers are
quantized: embedding, head, norms and fused experts keep their dtype.
"""

import contextlib
import ctypes
import gc
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from mftcoder.errors import ModelError
from mftcoder.kernels.linear.fp8 import MULTIPLE, round_weight
from mftcoder.kernels.linear.nf4 import BLOCK, BLOCKS_OF_SCALES
from mftcoder.models.layers.fp8 import Fp8Linear, fits, hold_in_fp8, sizes_fit, without_kept

NF4_BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * BLOCKS_OF_SCALES)
BYTES_PER_WEIGHT = {"4bit": NF4_BYTES, "8bit": 1.0, "fp8": 1.0, "4bit-fp8": NF4_BYTES}
IN_FP8 = ("fp8", "4bit-fp8")  # quantizations whose products are computed in fp8


def quantization_problems(quantization: str | None, model_config: Any, *, name: str) -> Iterator[str]:
    """Why the base `name` cannot be quantized so on this machine, each with a remedy.

    The base itself must not be quantized: LoRA weights over it would not fit the original weights and could not be merged.
    """
    if quantization not in (None, "fp8") and importlib.util.find_spec("bitsandbytes") is None:
        yield (
            f"model.quantization: {quantization} needs bitsandbytes, which is not installed. Install it with: pip install "
            "'mftcoder[qlora]', or remove the line to train LoRA over unquantized weights"
        )
    if getattr(model_config, "quantization_config", None) is not None:
        yield (
            f"{name}: its weights are already quantized. Give the base model in its original precision, with model.quantization: "
            f"{quantization or '4bit'} to train over fewer bits: the export merges into it"
        )


def loader_options(
    model: Any, quantization: str | None, dtype: torch.dtype, device: torch.device | str, kept: Sequence[str] = ()
) -> dict[str, Any]:
    """Additional arguments of transformers' loader; none for a base that it loads unquantized. `model` is on the meta device."""
    if quantization in (None, "fp8"):
        return {}
    assert quantization is not None
    converted = quantizable_layers(model, quantization, kept)
    linear = [path for path, layer in model.named_modules() if _is_linear(layer)]
    skipped = [path for path in linear if path not in converted] if kept else None  # None: the head
    return {"quantization_config": _bitsandbytes(quantization, dtype, skipped), "device_map": {"": device}}


def _bitsandbytes(quantization: str, dtype: torch.dtype, skipped: list[str] | None) -> BitsAndBytesConfig:
    """`dtype` is that of the products, and of the parameter that holds the packed bits; `skipped` are paths of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import bitsandbytes  # noqa: F401
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # a float format, so that an engine that shards parameters takes it
    )


def hold(model: Any, quantization: str, device: torch.device | str, kept: Sequence[str] = ()) -> None:
    """Finish the quantization of a model that transformers has loaded. ModelError if none of its layers is suitable."""
    if quantization == "fp8":
        names = list(quantizable_layers(model, quantization, kept))
        if not names:
            raise ModelError(
                f"{type(model).__name__}: has no linear layer whose sizes are multiples of {MULTIPLE}, which fp8 needs. Remove "
                "model.quantization"
            )
        hold_in_fp8(model, names, device)
        return
    keep_layout(model)
    for layer in model.modules():
        if quantization == "4bit-fp8" and hasattr(layer, "quant_state"):
            layer.fp8_products = sizes_fit(layer.out_features, layer.in_features)


def keep_layout(model: Any) -> None:
    """Forbid bitsandbytes to repack the 4-bit weights of a loaded model in place.

    On CPUs with avx512_bf16, its first forward pass without gradients changes their layout; training and saving then misread them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(model: Any) -> bool:
    """Whether linear layers of a loaded model are quantized."""
    in_bits = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    return bool(in_bits) or any(isinstance(layer, Fp8Linear) for layer in model.modules())


def was_conv1d(module: nn.Module) -> bool:
    """Whether a layer is GPT-2's transposed linear layer, or replaces one; the base's file holds it as [in, out]."""
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def quantizable_layers(model: Any, quantization: str | None = None, kept: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The layers of an unquantized model that would be quantized, by path: the linear ones except the head and those in `kept`.

    ModelError if a name in `kept` (model.modules_to_not_convert) covers none of them, or if none is left.
    """
    head = model.get_output_embeddings()
    takes = fits if quantization == "fp8" else _is_linear
    layers = {path: layer for path, layer in model.named_modules() if takes(layer) and layer is not head}
    return without_kept(layers, kept)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or isinstance(layer, Conv1D)


def quantizable_weights(model: Any, quantization: str | None = None, kept: Sequence[str] = ()) -> int:
    """The number of weights in these layers."""
    layers = quantizable_layers(model, quantization, kept).values()
    weights: list[Tensor] = [layer.weight for layer in layers]  # type: ignore[misc]
    return sum(weight.numel() for weight in weights)


def as_held(weight: Tensor, quantization: str, dtype: torch.dtype) -> Tensor:
    """The values of `weight` [out, in] in products after it was cast to `dtype` and quantized."""
    weight = weight.to(dtype)
    if quantization == "8bit":
        import bitsandbytes.functional as bits

        held, largest, _ = bits.int8_vectorwise_quant(weight.to(torch.float16))
        return (held.float() * largest[:, None] / 127).to(dtype)
    if quantization.startswith("4bit"):
        import bitsandbytes.functional as bits

        packed, state = bits.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
        weight = bits.dequantize_4bit(packed, state)
    if quantization in IN_FP8 and sizes_fit(*weight.shape):
        rounded, scale = round_weight(weight)
        weight = rounded.to(dtype) * scale.to(dtype)
    return weight


def free_loading_memory(model: Any) -> None:
    """Free the memory that quantizing leaves behind on the CPU: the mapped file, and the allocator's free pages.

    Otherwise the run would keep the unquantized base in memory, too.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not getattr(tensor, "quant_state", None):
            tensor.data = tensor.data.clone()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not a GNU C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
