"""How many positions a model has, against data.max_length: a table of positions ends, a rotary embedding only fades.

Goes in: a resolved model and the length of a row. Comes out: nothing, a warning, or a ModelError. Loads no weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mftcoder.errors import ModelError
from mftcoder.models.loading.resolve import ResolvedModel


def check_positions(model: ResolvedModel, max_length: int, *, trust_remote_code: bool = False) -> str | None:
    """A warning if samples may reach positions that the model was not made for; ModelError if it has no such positions."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or max_length <= limit:
        return None
    if _has_table(model.config, trust_remote_code=trust_remote_code):
        raise ModelError(
            f"data.max_length: {max_length}: {model.name} has a table of {limit} positions and no more. Set data.max_length to "
            f"{limit} or less"
        )
    reach = max(limit, *(_reach(rope, limit) for rope in rotations(config)), 0)
    if max_length <= reach:
        return None
    return (
        f"data.max_length: {max_length} is more than the {reach} positions that {model.name} was made for (max_position_embeddings "
        f"and rope scaling in its config.json): longer samples reach positions that it was never trained on. Set data.max_length "
        f"to {reach} or less, or scale its rotary embedding."
    )


def rotations(config: Any) -> Iterator[dict[str, Any]]:
    """The parameters of a config's rotary embeddings, which may differ between kinds of layers; nothing without one."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters] * bool(parameters)


def _reach(rope: dict[str, Any], limit: int) -> int:
    """Positions that a scaled rotary embedding reaches; 0 for one that is not scaled."""
    if rope.get("rope_type", "default") == "default":
        return 0
    return int((rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or limit))


def _has_table(model_config: Any, *, trust_remote_code: bool) -> bool:
    """Whether positions are looked up in a table, learned (GPT-2's wpe) or computed once (GPT-J's embed_positions)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    limit = model_config.get_text_config().max_position_embeddings
    return any(
        tensor.ndim == 2 and limit <= tensor.shape[0] <= limit + 2 and ("wpe" in name or "pos" in name)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    )
