"""A model whose files hold quantized weights: whether a library here reads them, and the weights unpacked once for all."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json
from mftcoder.log import say
from mftcoder.models.files.weights import listed

COMPRESSED = "compressed-tensors"
EXTRAS = {COMPRESSED: ("compressed_tensors", "compressed"), "bitsandbytes": ("bitsandbytes", "qlora")}
"""Method -> the package that reads it, and this project's extra with it."""


def stored_method(model_config: Any) -> str | None:
    """The method by which the files of a model are quantized, as its config names it; None for whole weights."""
    stored = getattr(model_config, "quantization_config", None)
    if stored is None:
        return None
    values = stored if isinstance(stored, dict) else stored.to_dict()
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return "bitsandbytes"
    method = values.get("quant_method")
    return str(getattr(method, "value", method) or "a method that is not named")


def is_stored_quantized(folder: Path) -> bool:
    """Whether the config of a model folder says that its weights are quantized."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def check_stored(model_config: Any, *, name: str, hold: str | None) -> str | None:
    """The method of the files, None for whole weights. ModelError if they cannot be read here, or are to be quantized once more (`hold`)."""
    method = stored_method(model_config)
    holds = "bitsandbytes" if hold not in (None, "fp8") else ""  # fp8 is this project's own
    package, extra = EXTRAS.get(method or holds, ("", ""))
    if method is not None and hold is not None:
        raise ModelError(
            f"{name}: its weights are quantized already ({method}), so they cannot be held in {hold}. Load it without, or give the model "
            "that it was made from"
        )
    if package and importlib.util.find_spec(package) is None:
        subject = f"{hold} needs" if method is None else f"{name}: its weights are quantized by {method}, which needs"
        raise ModelError(f"{subject} {package.replace('_', '-')}. Install it with: pip install 'mftcoder[{extra}]'")
    # transformers only warns of a method that it does not know, and then reads packed bits as weights.
    if method not in (None, "bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(f"{name}: its weights are quantized by {method}, which transformers cannot read")
    return method


def unpack(model: Any, info: Any, method: str, *, name: str) -> None:
    """Give a loaded model the weights that its packed ones stand for. ModelError for tensors that the config does not explain.

    Otherwise compressed-tensors does it in the first call, with a progress bar. What the method does to activations stays.
    """
    if unknown := sorted(info["unexpected_keys"]):
        raise ModelError(
            f"{name}: its quantization_config does not explain {len(unknown)} tensors of its files: {listed(unknown)}. Config and files "
            "do not belong together; download the model again"
        )
    if method == COMPRESSED:
        with quiet_bars():
            model.hf_quantizer.compressor.decompress_model(model)
        if _rounds_activations(model):
            say(
                f"{name}: rounds what its layers read to few bits, so the last bit of a sum can decide a token: a text may change with "
                "the texts that are generated beside it"
            )


def _rounds_activations(model: Any) -> bool:
    """Whether layers round what they read, as fp8 releases do."""
    schemes = (getattr(layer, "quantization_scheme", None) for layer in model.modules())
    return any(getattr(scheme, "input_activations", None) is not None for scheme in schemes)


def quiet_bars() -> contextlib.AbstractContextManager[Any]:
    """Hide the progress bars of compressed-tensors, which cannot be turned off."""
    return contextlib.redirect_stderr(io.StringIO())
