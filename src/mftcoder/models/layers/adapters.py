"""Which weights train: all of them, or LoRA weights through peft.

peft owns the LoRA weights, `lora_forward.py` computes them, and folders are saved and loaded in peft's format. `export/merge.py`
merges them.

LoRA weights have the base's dtype, so that no forward pass casts. An update of 1e-4 of a weight is below bfloat16's step of 4e-3 and
would be lost, so the optimizer keeps float32 copies (training/optimizer.py).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError, reason
from mftcoder.jsonl import read_json
from mftcoder.models.layers.lora_forward import speed_up
from mftcoder.models.layers.quantize import is_quantized, was_conv1d
from mftcoder.registry import did_you_mean

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, config: AdapterConfig, *, quantization: str | None = None) -> Any:
    """The model that trains as `config` says. For lora, a peft model around `model` that is equal to it until the first step.

    `quantization` is that of the base's linear layers, for a `model` on the meta device that is not quantized itself.
    ModelError if this model cannot have these LoRA weights.
    """
    if config.type == "full":
        return model.requires_grad_(True)
    settings = lora_config(model, config, in_bits=quantization is not None or is_quantized(model))
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # For fused experts, peft sets and applies the ranks itself, and then does not find them among the modules.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        try:
            adapted: Any = get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:  # fused experts know neither dropout nor DoRA
            raise ModelError(f"adapter: {type(model).__name__} cannot be adapted like this: {error}") from error
    return _ready(adapted, model, peft_forward=config.peft_forward)


def _ready(adapted: Any, model: Any, *, peft_forward: bool = False) -> Any:
    """A peft model ready to train: LoRA weights in the base's dtype, plain layers with the faster forward."""
    adapted = _cast_to_base(adapted, model)
    if not peft_forward:
        speed_up(adapted)
    return adapted


def _cast_to_base(adapted: Any, model: Any) -> Any:
    """Cast the LoRA weights that peft makes in float32 over 8-bit weights to the dtype that the base computes in."""
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
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # annotated as int, but only divided
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config.lora_target),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=_embeddings(model, config.lora_target) if config.train_embeddings else None,
        ensure_weight_tying=config.train_embeddings and _tied_head(model) is not None,
        bias="none",
        fan_in_fan_out=any(was_conv1d(module) for module in model.modules()),
    )
    overlooked = _overlooked_layers(model, config.lora_target)
    if overlooked and in_bits:
        raise ModelError(
            f"adapter.lora_target: {overlooked[0]} has the name of a fused expert, and peft adapts such a layer only if its "
            "weight is not quantized. Name other layers (the attention's, for example), or remove model.quantization"
        )
    if overlooked:
        settings.target_parameters = [f"{path}.weight" for path in overlooked]
        if config.lora_target != ("all-linear",):
            settings.target_modules = [n for n in config.lora_target if "." not in n or not _is_for_experts(model, n)]
    return settings


def _overlooked_layers(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Wanted linear layers that peft would leave out, because it looks for their names only among fused experts.

    For example DeepSeek's dense layers and shared experts (https://github.com/huggingface/peft/issues/3711).
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
    """Whether peft looks for a target of this name only among fused experts."""
    settings = LoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(settings, model, None)
    except ValueError:  # the target is one of two fused weights
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
            f"adapter.lora_target: {head} shares its weight with the embedding in this model, so LoRA weights of it could not "
            "be merged; leave it out"
        )
    if problems:
        raise ModelError(*problems)
    return list(wanted)


def _embeddings(model: Any, lora_target: tuple[str, ...]) -> list[str]:
    """The names of the embedding and of an output head with a weight of its own; a head that shares it follows the embedding.

    ModelError for a model whose shared weight peft would not keep shared.
    """
    embedding = _path_of(model, model.get_input_embeddings())
    head = _path_of(model, model.get_output_embeddings())
    name = embedding.rpartition(".")[2]
    if _tied_head(model):
        if name not in EMBEDDING_LAYER_NAMES:
            raise ModelError(
                f"adapter.train_embeddings: {embedding} shares its weight with the output head, and peft keeps only a weight named "
                f"{' or '.join(EMBEDDING_LAYER_NAMES)} shared. Set it to false, or adapter.type: full"
            )
        return [name]
    if any(_names(wanted, head) for wanted in lora_target):
        raise ModelError(
            f"adapter.lora_target: {head} is trained whole with adapter.train_embeddings. Leave it out, or set that to false"
        )
    return [name, head.rpartition(".")[2]]


def _path_of(model: Any, module: nn.Module) -> str:
    return next(path for path, found in model.named_modules() if found is module)


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _linear_paths(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _tied_head(model: Any) -> str | None:
    """The path of the output head if it shares its weight with the embedding."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return None
    return _path_of(model, model.get_output_embeddings())


def linear_names(model: Any) -> list[str]:
    """The last names of the model's linear layers, sorted: `["down_proj", "gate_proj", ...]`, without numbers."""
    names = {path.rpartition(".")[2] for path in _linear_paths(model)}
    return sorted(name for name in names if not name.isdigit())


def is_adapter_model(model: Any) -> bool:
    """Whether the model has peft's LoRA weights."""
    return isinstance(model, PeftModel)


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


def restore(model: Any, folder: Path) -> None:
    """Load the weights that `save_weights` wrote into the same model, bit for bit. ModelError if they do not fit."""
    state: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        if is_adapter_model(model):
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


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """`model` with the adapter of a peft folder. ModelError if the folder is not one, is damaged, or fits another base."""
    with _checked_adapter(folder):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, autocast_adapter_dtype=False)
    return _ready(adapted, model)


def load_adapters(model: Any, folders: Mapping[str, Path]) -> Any:
    """`model` with several adapters by name, none merged and none in use. ModelError as in `load_adapter`."""
    adapted: Any = None
    for name, folder in folders.items():
        with _checked_adapter(folder):
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, folder, name, autocast_adapter_dtype=False)
            else:
                adapted.load_adapter(folder, name, autocast_adapter_dtype=False)
    adapted.base_model.disable_adapter_layers()  # peft begins with the first adapter in use
    return _cast_to_base(adapted, model).eval()


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
