"""Whether several ranks can share a model's rows, each running a slice of their positions: what its config says about it.

Goes in: a resolved model and the number of ranks. Comes out: nothing, or a ModelError with all that stands in the way. Loads no
weights; that the slices of the loaded model give what whole rows give is verified when a run starts.
"""

from collections.abc import Iterator
from typing import Any

from transformers import AutoModelForCausalLM

from mftcoder.errors import ModelError
from mftcoder.kernels.rotary import BY_LENGTH
from mftcoder.models.loading.positions import rotations
from mftcoder.models.loading.resolve import ResolvedModel

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def check_row_slices(model: ResolvedModel, ranks: int) -> None:
    """ModelError if rows of this model cannot be shared by so many ranks."""
    if ranks == 1:
        return
    problems = list(_problems(model.config.get_text_config(), ranks))
    if problems:
        raise ModelError(*(f"backend.context_parallel_size: {ranks}: {model.name}: {problem}" for problem in problems))


def _problems(config: Any, ranks: int) -> Iterator[str]:
    instead = "Set it to 1"
    architecture: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if architecture is None:
        yield f"it comes with Python code of its own, of which it is not known what looks from token to token. {instead}"
        return
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS)
    if architecture._is_stateful or others:
        kinds = f" ({', '.join(others)})" if others else ""
        yield f"its layers look from token to token by other means than attention{kinds}. {instead}"
    elif not architecture._supports_attention_backend:
        yield f"{architecture.__name__} does not use transformers' exchangeable attention. {instead}"
    if getattr(config, "attn_logit_softcapping", None):
        yield f"its attention scores are capped, which only attention over whole rows does. {instead}"
    by_length = sorted({str(rope.get("rope_type")) for rope in rotations(config)} & BY_LENGTH)
    if by_length:
        yield f"its rotary embedding ({', '.join(by_length)}) depends on the length of what it is shown. {instead}"
    heads = int(config.num_attention_heads)
    if heads % ranks:
        fitting = ", ".join(str(size) for size in range(2, heads + 1) if heads % size == 0)
        yield f"its {heads} attention heads cannot be dealt out evenly to {ranks} ranks. Set it to {fitting}"
