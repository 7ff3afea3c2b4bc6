"""Which weights train: all of them, or low-rank additions through peft.

Goes in: a base model and the adapter section. Comes out: the model with `requires_grad` set and, for lora, additions in the
base's own dtype over a base that stays as it is. peft owns them, `lora_forward.py` computes them. Saves and loads adapters as
peft folders that stock peft reads. Merging is `merge.py`'s.

The additions have the base's dtype, so that no forward pass casts. An update of 1e-4 of a weight is below bfloat16's step of
4e-3 and would be lost: the optimizer keeps float32 copies (training/optimizer.py).
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json
from mftcoder.models.layers.lora_forward import speed_up
from mftcoder.models.layers.quantize import is_quantized, was_conv1d
from mftcoder.registry import did_you_mean

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, config: AdapterConfig, *, quantization: str | None = None) -> Any:
    """The model that trains as `config` says. For lora a peft model around `model`, equal to it until the first step.

    `quantization` says that the base's linear layers will be held in bits, where `model` is only its plan (on the meta device).
    ModelError for additions that this model cannot have.
    """
    if config.type == "full":
        return model.requires_grad_(True)
    settings = lora_config(model, config, in_bits=quantization is not None or is_quantized(model))
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute it has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # For fused experts peft sets the ranks itself, applies them, and then misses them among the modules.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        try:
            adapted: Any = get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:  # fused experts know neither dropout nor DoRA
            raise ModelError(f"adapter: {type(model).__name__} cannot be adapted like this: {error}") from error
    return _ready(adapted, model, peft_forward=config.peft_forward)


def _ready(adapted: Any, model: Any, *, peft_forward: bool = False) -> Any:
    """A peft model as it trains: additions in the products' format, plain layers with the faster forward."""
    adapted = _in_the_products_format(adapted, model)
    if not peft_forward:
        speed_up(adapted)
    return adapted


def _in_the_products_format(adapted: Any, model: Any) -> Any:
    """Over packed 8-bit weights peft makes additions in float32; they get the format that the base computes in."""
    if is_quantized(model):
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(model.dtype)
    return adapted


def lora_config(model: Any, config: AdapterConfig, *, in_bits: bool = False) -> LoraConfig:
    """peft's config; ModelError for a target that the model does not have, with the linear layers it has."""
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft says int, and divides
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config.lora_target),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        fan_in_fan_out=any(was_conv1d(module) for module in model.modules()),
    )
    overlooked = _overlooked_layers(model, config.lora_target)
    if overlooked and in_bits:
        raise ModelError(
            f"adapter.lora_target: {overlooked[0]} has the name of a fused expert, and peft adds to such a layer only where its "
            "weight is whole. Name other layers (the attention's, for example), or remove model.quantization"
        )
    if overlooked:
        settings.target_parameters = [f"{path}.weight" for path in overlooked]
        if config.lora_target != ("all-linear",):
            settings.target_modules = [n for n in config.lora_target if "." not in n or not _is_for_experts(model, n)]
    return settings


def _overlooked_layers(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Linear layers that are wanted and that peft would leave out: it looks for their names among fused experts only.

    DeepSeek's dense layers and shared experts, for example (https://github.com/huggingface/peft/issues/3711).
    """
    head = model.get_output_embeddings()
    paths = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is not head if wanted == ("all-linear",) else any(_names(name, path) for name in wanted))
    ]
    one_of_a_name = {path.rpartition(".")[2]: path for path in paths}
    overlooked = {name for name, path in one_of_a_name.items() if _is_for_experts(model, path)}
    return [path for path in paths if path.rpartition(".")[2] in overlooked]


def _is_for_experts(model: Any, target: str) -> bool:
    """Whether peft looks for a target of this name among fused experts."""
    settings = LoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(settings, model, None)
    except ValueError:  # one half of what is fused
        return True
    return target not in (settings.target_modules or ())


def _targets(model: Any, wanted: tuple[str, ...]) -> str | list[str]:
    if wanted == ("all-linear",):
        return "all-linear"
    unknown = [name for name in wanted if not any(_names(name, path) for path in _linear_paths(model))]
    known = linear_names(model)
    problems = [
        f"adapter.lora_target: no linear layer is named '{name}'.{did_you_mean(name, known)} This model has: "
        f"{', '.join(known)}; or write all-linear"
        for name in unknown
    ]
    head = _tied_head(model)
    if head and any(_names(name, head) for name in wanted):
        problems.append(
            f"adapter.lora_target: {head} shares its weight with the embedding in this model, so an addition to it could not "
            "be merged; leave it out"
        )
    if problems:
        raise ModelError(*problems)
    return list(wanted)


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _linear_paths(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _tied_head(model: Any) -> str | None:
    """The path of the output head if it shares its weight with the embedding."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return None
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def linear_names(model: Any) -> list[str]:
    """The last names of the model's linear layers, sorted: `["down_proj", "gate_proj", ...]`, without numbers."""
    names = {path.rpartition(".")[2] for path in _linear_paths(model)}
    return sorted(name for name in names if not name.isdigit())


def is_adapter_model(model: Any) -> bool:
    """Whether peft's additions are attached."""
    return isinstance(model, PeftModel)


def trainable_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and weight of everything that trains, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def reaches_experts(adapter: Path) -> bool:
    """Whether a peft folder adds to fused expert weights, which no file holds under that name."""
    return bool(read_json(adapter / ADAPTER_CONFIG).get("target_parameters"))


def save_adapter(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the additions (or `weights` in their place) as a peft folder: adapter_config.json and adapter_model.safetensors."""
    # "auto" would ask the Hub whether the vocabulary has changed; the embedding is no part of what trains here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card; the export writes the real one


def save_weights(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write what trains: the additions as a peft folder, or the whole model in Hugging Face layout.

    `weights` are the whole ones by name, where the model itself holds only a share of each.
    """
    if is_adapter_model(model):
        save_adapter(model, folder, weights)
    else:
        model.save_pretrained(folder, state_dict=weights)


def save_settings(model: Any, folder: Path) -> None:
    """Write what stands beside the weights of a whole model in its folder."""
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def restore(model: Any, folder: Path) -> None:
    """Put the weights that `save_weights` wrote back into the same model, bit for bit. ModelError if they do not fit."""
    state: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        if is_adapter_model(model):
            outcome: Any = set_peft_model_state_dict(model, state)
            unexpected = outcome.unexpected_keys
        else:
            if not state.keys() <= model.state_dict().keys():  # files of another layout: an expert each, say
                state = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
            unexpected = model.load_state_dict(state, strict=False).unexpected_keys
            model.tie_weights()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: does not fit this model: {' '.join(str(error).split())[:300]}") from error
    if not state or unexpected:
        raise ModelError(f"{folder}: does not fit this model: {', '.join(unexpected[:3]) or 'no weights'}")


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """`model` with the additions of a peft folder. ModelError if the folder is none, is damaged, or belongs to another base."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: is not an adapter folder: {name} is missing")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: does not fit this base model or is damaged: {reason[:300]}") from error
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if missing:
        raise ModelError(f"{folder}: does not fit this base model: {missing[0][:300]}")
    return _ready(adapted, model)
