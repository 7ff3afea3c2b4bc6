"""Which weights train: all of them, or LoRA weights through peft; and the folders that they are kept in.

peft owns the LoRA weights (`lora.py`), `lora_forward.py` computes them, and folders are saved and loaded in peft's format.
`export/merge.py` merges them. peft is imported where there are LoRA weights, and not before.

LoRA weights have the base's dtype, so that no forward pass casts. An update of 1e-4 of a weight is below bfloat16's step of 4e-3 and
would be lost, so the optimizer keeps float32 copies (training/optimizer.py).
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError, reason
from mftcoder.jsonl import read_json
from mftcoder.models.files.weights import building
from mftcoder.models.layers.quantize import is_quantized

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@building()
def attach(model: Any, config: AdapterConfig, *, quantization: str | None = None) -> Any:
    """The model that trains as `config` says. For lora, a peft model around `model` that is equal to it until the first step.

    `quantization` is that of the base's linear layers, for a `model` on the meta device that is not quantized itself.
    ModelError if this model cannot have these LoRA weights.
    """
    if config.type == "full":
        return model.requires_grad_(True)
    from mftcoder.models.layers.lora import with_lora

    return with_lora(model, config, in_bits=quantization is not None or is_quantized(model))


def is_adapter_model(model: Any) -> bool:
    """Whether the model has peft's LoRA weights. Without peft there is none."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def trainable_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights that train, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def reaches_experts(adapter: Path) -> bool:
    """Whether a peft folder adapts fused expert weights, whose names are not in the base's files."""
    return bool(read_json(adapter / ADAPTER_CONFIG).get("target_parameters"))


def save_adapter(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the LoRA weights (or `weights` in their place) as a peft folder: adapter_config.json and adapter_model.safetensors."""
    # "auto" would ask the Hub whether the vocabulary has changed; the embedding does not train here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card; the export writes the real one


def save_weights(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write what trains: the LoRA weights as a peft folder, or the whole model in Hugging Face layout.

    `weights` are the whole weights by name, if the model itself holds only shards.
    """
    if is_adapter_model(model):
        save_adapter(model, folder, weights)
    else:
        model.save_pretrained(folder, state_dict=weights)


def save_settings(model: Any, folder: Path) -> None:
    """Write the config and generation config of a whole model into its folder."""
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@building()
def restore(model: Any, folder: Path) -> None:
    """Load the weights that `save_weights` wrote into the same model, bit for bit. ModelError if they do not fit."""
    state: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        if is_adapter_model(model):
            from peft import set_peft_model_state_dict

            outcome: Any = set_peft_model_state_dict(model, state)
            unexpected = outcome.unexpected_keys
        else:
            if not state.keys() <= model.state_dict().keys():  # another layout, for example one tensor per expert
                state = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
            unexpected = model.load_state_dict(state, strict=False).unexpected_keys
            model.tie_weights()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: does not fit this model: {reason(error)}") from error
    if not state or unexpected:
        raise ModelError(f"{folder}: does not fit this model: {', '.join(unexpected[:3]) or 'no weights'}")


@building()
def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """`model` with the adapter of a peft folder. ModelError if the folder is not one, is damaged, or fits another base."""
    from peft import PeftModel

    from mftcoder.models.layers.lora import ready

    with _checked_adapter(folder):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, autocast_adapter_dtype=False)
    return ready(adapted, model)


@building()
def load_adapters(model: Any, folders: Mapping[str, Path]) -> Any:
    """`model` with several adapters by name, none merged and none in use. ModelError as in `load_adapter`."""
    from peft import PeftModel

    from mftcoder.models.layers.lora import cast_to_base

    adapted: Any = None
    for name, folder in folders.items():
        with _checked_adapter(folder):
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, folder, name, autocast_adapter_dtype=False)
            else:
                adapted.load_adapter(folder, name, autocast_adapter_dtype=False)
    adapted.base_model.disable_adapter_layers()  # peft begins with the first adapter in use
    return cast_to_base(adapted, model).eval()


@contextmanager
def _checked_adapter(folder: Path) -> Iterator[None]:
    """ModelError if the adapter that is loaded in this block is incomplete or does not fit the model."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: is not an adapter folder: {name} is missing")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: does not fit this base model or is damaged: {reason(error)}") from error
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if missing:
        raise ModelError(f"{folder}: does not fit this base model: {missing[0][:300]}")
