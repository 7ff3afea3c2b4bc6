"""Which weights train: all of them, or low-rank additions through peft.

Goes in: a base model and the adapter section. Comes out: the model with `requires_grad` set and, for lora, additions in
float32 over a base that stays as it is. Saves and loads adapters as peft folders that stock peft reads. Merging is `merge.py`'s.

The additions are float32 whatever the base is: an update of 1e-4 of a weight is below bfloat16's step of 4e-3, so a bfloat16
addition would stand still once it has grown.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers.pytorch_utils import Conv1D

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError
from mftcoder.registry import did_you_mean

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, config: AdapterConfig) -> Any:
    """The model that trains as `config` says. For lora a peft model around `model`, equal to it until the first step."""
    if config.type == "full":
        return model.requires_grad_(True)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute it has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, lora_config(model, config))


def lora_config(model: Any, config: AdapterConfig) -> LoraConfig:
    """peft's config; ModelError for a target that the model does not have, with the linear layers it has."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft says int, and divides
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config.lora_target),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
    )


def _targets(model: Any, wanted: tuple[str, ...]) -> str | list[str]:
    if wanted == ("all-linear",):
        return "all-linear"
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    known = linear_names(model)
    unknown = [name for name in wanted if not any(path == name or path.endswith(f".{name}") for path in paths)]
    if unknown:
        raise ModelError(
            *(
                f"adapter.lora_target: no linear layer is named '{name}'.{did_you_mean(name, known)} This model has: "
                f"{', '.join(known)}; or write all-linear"
                for name in unknown
            )
        )
    return list(wanted)


def linear_names(model: Any) -> list[str]:
    """The last names of the model's linear layers, sorted: `["down_proj", "gate_proj", ...]`, without numbers."""
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    return sorted(name for name in names if not name.isdigit())


def is_adapter_model(model: Any) -> bool:
    """Whether peft's additions are attached."""
    return isinstance(model, PeftModel)


def trainable_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and weight of everything that trains, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the additions as a peft folder: adapter_config.json and adapter_model.safetensors."""
    # "auto" would ask the Hub whether the vocabulary has changed; the embedding is no part of what trains here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card; the export writes the real one


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """`model` with the additions of a peft folder. ModelError if the folder is none, is damaged, or belongs to another base."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: is not an adapter folder: {name} is missing")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: does not fit this base model or is damaged: {reason[:300]}") from error
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if missing:
        raise ModelError(f"{folder}: does not fit this base model: {missing[0][:300]}")
    return adapted
