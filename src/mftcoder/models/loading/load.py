"""Load a base model: dtype, attention, quantization, device. `adapters.py` attaches LoRA weights."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from mftcoder.config.schema import ModelConfig
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import ModelError, reason
from mftcoder.models.files.weights import building, listed, meta_model
from mftcoder.models.layers.quantize import free_loading_memory, hold, loader_options
from mftcoder.models.loading.resolve import folder_fit, local_folder, read_model_config
from mftcoder.models.loading.stored_bits import check_stored, quiet_bars, unpack

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(config: ModelConfig, *, attn_implementation: str, device: torch.device | str) -> Any:
    """The base model on `device` in evaluation mode, without a key-value cache. ModelError if it cannot be loaded.

    `resolve_model` finds more problems, and all of them at once; a run calls it once, before its ranks load the model.
    `attn_implementation` is a name that transformers knows or that was registered with its AttentionInterface.
    """
    return load_folder(
        local_folder(config.model_name_or_path, weights=True, pickled=not config.use_safetensors),
        dtype=DTYPES[config.dtype],
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=config.use_safetensors,
        quantization=config.quantization,
        kept=config.modules_to_not_convert if config.quantization else (),
    )


@building()
def load_folder(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    quantization: str | None = None,
    kept: Sequence[str] = (),
) -> Any:
    """The model of a folder on `device`, by default with the attention that transformers chooses.

    `kept` names layers that are not quantized, as model.modules_to_not_convert does. ModelError if a weight is missing or has the wrong shape, or if the model does not fit on the device.
    """
    model_config = read_model_config(folder, name=str(folder), trust_remote_code=trust_remote_code)
    stored = check_stored(model_config, name=str(folder), hold=quantization)
    model = meta_model(model_config, where=folder / "config.json", trust_remote_code=trust_remote_code)
    if problems := folder_fit(folder, model, allow_pickled=not use_safetensors).problems:
        raise ModelError(*problems)
    transformers_logging.disable_progress_bar()
    try:
        with quiet_bars() if stored else nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=model_config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True if use_safetensors else None,
                output_loading_info=True,
                **loader_options(model, quantization, dtype, device, kept),
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {reason(error)}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: its files lack {len(missing)} of the model's weights: {listed(missing)}. They would be random numbers; "
            "download the model again"
        )
    if stored:
        unpack(model, info, stored, name=str(folder))
    model.config.use_cache = False
    if quantization:
        hold(model, quantization, device, kept)
    if quantization and torch.device(device).type == "cpu":
        free_loading_memory(model)
    if quantization in (None, "fp8"):
        _move(model, device, folder)
    return model.eval()


def _move(model: Any, device: torch.device | str, folder: Path) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        gigabytes = sum(parameter.nbytes for parameter in model.parameters()) / 2**30
        raise ModelError(
            f"{folder}: its {gigabytes:.1f} GiB of weights do not fit on {device}; use a smaller model"
        ) from error


def stop_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token that ends a text: the tokenizer's EOS token and those of generation_config.json, ascending."""
    ends = {tokenizer.eos_id}
    if (folder / "generation_config.json").is_file():
        declared = GenerationConfig.from_pretrained(folder).eos_token_id
        ends.update(declared if isinstance(declared, list) else [declared])
    return tuple(sorted(end for end in ends if end is not None))
