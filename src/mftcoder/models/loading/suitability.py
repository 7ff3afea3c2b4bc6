"""Whether a resolved model suits the run, by its config: positions of data.max_length, rows shared by ranks, the router loss.

Loads no weights. Whether the slices of the loaded model give the same as whole rows is verified when a run starts.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mftcoder.config.kinds import PreferenceKind
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ModelError
from mftcoder.kernels.rotary import BY_LENGTH
from mftcoder.models.files.weights import building
from mftcoder.models.loading.resolve import ResolvedModel

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def check_suitability(model: ResolvedModel, config: RunConfig) -> list[str]:
    """Warnings about the model in a run of this config. ModelError lists all that it cannot do."""
    problems, warnings = list[str](), [model.unused_line, _unused_coefficient(model, config.loss.router_aux_loss_coef)]
    try:
        check_row_slices(model, config.backend.context_parallel_size)
    except ModelError as error:
        problems += error.problems
    try:
        if not _only_pairs(config):
            trusted = config.model.trust_remote_code
            warnings.append(check_positions(model, config.data.max_length, trust_remote_code=trusted) or "")
    except ModelError as error:
        problems += error.problems
    if problems:
        raise ModelError(*problems)
    return [warning for warning in warnings if warning]


def _unused_coefficient(model: ResolvedModel, coefficient: float | None) -> str:
    """A warning if loss.router_aux_loss_coef is set for a model without such a loss."""
    architecture: Any = AutoModelForCausalLM._model_mapping.get(type(model.config), None)
    formula = getattr(sys.modules.get(getattr(architecture, "__module__", "")), "load_balancing_loss_func", None)
    if not coefficient or architecture is None or (formula and hasattr(model.config, "router_aux_loss_coef")):
        return ""
    return f"loss.router_aux_loss_coef: {coefficient:g} has no effect: {model.name} has no such loss"


def check_texts(model: ResolvedModel, config: RunConfig, longest: int, task: str) -> str | None:
    """The same as check_positions for a run of pairs only, by its `longest` text, which is one of `task`: two texts share a row, so
    data.max_length does not tell."""
    subject, trusted = f"tasks.{task}: a text of {longest} positions", config.model.trust_remote_code
    return check_positions(model, longest, subject, trust_remote_code=trusted) if _only_pairs(config) else None


def _only_pairs(config: RunConfig) -> bool:
    return all(isinstance(task.kind, PreferenceKind) for task in config.tasks)


def check_positions(
    model: ResolvedModel, longest: int, subject: str = "", *, trust_remote_code: bool = False
) -> str | None:
    """A warning if a sample may have positions that the model was not trained for; ModelError if it cannot compute them.

    `longest` is data.max_length unless `subject` says what it is.
    """
    subject = subject or f"data.max_length: {longest}"
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or longest <= limit:
        return None
    if _has_table(model.config, trust_remote_code=trust_remote_code):
        raise ModelError(
            f"{subject}: {model.name} has a table of only {limit} positions. Set data.max_length to {limit} or less"
        )
    reach = max(limit, *(_reach(rope, limit) for rope in rotations(config)), 0)
    if longest <= reach:
        return None
    return (
        f"{subject} is more than the {reach} positions that {model.name} was made for (max_position_embeddings "
        f"and rope scaling in its config.json): longer samples have positions that it was never trained on. Set data.max_length "
        f"to {reach} or less, or scale its rotary embedding."
    )


def rotations(config: Any) -> Iterator[dict[str, Any]]:
    """The parameters of a config's rotary embeddings: none, one, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters] * bool(parameters)


def _reach(rope: dict[str, Any], limit: int) -> int:
    """The number of positions of a scaled rotary embedding; 0 if it is not scaled."""
    if rope.get("rope_type", "default") == "default":
        return 0
    return int((rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or limit))


def _has_table(model_config: Any, *, trust_remote_code: bool) -> bool:
    """Whether positions come from a table, learned (GPT-2's wpe) or computed once (GPT-J's embed_positions)."""
    with building(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    limit = model_config.get_text_config().max_position_embeddings
    return any(
        tensor.ndim == 2 and limit <= tensor.shape[0] <= limit + 2 and ("wpe" in name or "pos" in name)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    )


def check_row_slices(model: ResolvedModel, ranks: int) -> None:
    """ModelError if this number of ranks cannot share rows of this model, each running a slice of the positions."""
    if ranks == 1:
        return
    problems = list(_slice_problems(model.config.get_text_config(), ranks))
    if problems:
        raise ModelError(*(f"backend.context_parallel_size: {ranks}: {model.name}: {problem}" for problem in problems))


def _slice_problems(config: Any, ranks: int) -> Iterator[str]:
    remedy = "Set it to 1"
    architecture: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if architecture is None:
        yield f"it comes with its own Python code, which may connect tokens by other means than attention. {remedy}"
        return
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS)
    if architecture._is_stateful or others:
        kinds = f" ({', '.join(others)})" if others else ""
        yield f"its layers connect tokens by other means than attention{kinds}. {remedy}"
    elif not architecture._supports_attention_backend:
        yield f"{architecture.__name__} does not use transformers' exchangeable attention. {remedy}"
    if getattr(config, "attn_logit_softcapping", None):
        yield f"its attention scores are capped, which is only supported for whole rows. {remedy}"
    by_length = sorted({str(rope.get("rope_type")) for rope in rotations(config)} & BY_LENGTH)
    if by_length:
        yield f"its rotary embedding ({', '.join(by_length)}) depends on the length of the row. {remedy}"
    heads = int(config.num_attention_heads)
    if heads % ranks:
        fitting = ", ".join(str(size) for size in range(2, heads + 1) if heads % size == 0)
        yield f"its {heads} attention heads cannot be divided evenly among {ranks} ranks. Set it to {fitting}"
