"""LoRA weights through peft: which layers get them, and peft's model around the base.

This module imports peft, which imports bitsandbytes and with it torch's compiler: nearly a second. Only runs and servers with LoRA weights need it.
"""

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from mftcoder.config.schema import AdapterConfig
from mftcoder.errors import ModelError
from mftcoder.models.layers.lora_forward import speed_up
from mftcoder.models.layers.quantize import is_quantized, was_conv1d
from mftcoder.registry import did_you_mean


def with_lora(model: Any, config: AdapterConfig, *, in_bits: bool) -> Any:
    """A peft model around `model`, whose linear layers are quantized if `in_bits`. ModelError as in `adapters.attach`."""
    settings = lora_config(model, config, in_bits=in_bits)
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # For fused experts, peft sets and applies the ranks itself, and then does not find them among the modules.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        try:
            adapted: Any = get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:  # fused experts know neither dropout nor DoRA
            raise ModelError(f"adapter: {type(model).__name__} cannot be adapted like this: {error}") from error
    return ready(adapted, model, peft_forward=config.peft_forward)


def ready(adapted: Any, model: Any, *, peft_forward: bool = False) -> Any:
    """A peft model ready to train: LoRA weights in the base's dtype, plain layers with the faster forward."""
    adapted = cast_to_base(adapted, model)
    if not peft_forward:
        speed_up(adapted)
    return adapted


def cast_to_base(adapted: Any, model: Any) -> Any:
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
