"""Recomputation: what a decoder layer keeps for its backward pass, and what it computes again.

There are three amounts: nothing is recomputed; `selective` keeps the results of matrix products and of attention, and recomputes the
operations between them (norms, rotary, SwiGLU); or the whole layer is recomputed from its input. The results are bit-equal in all three,
because the same operations run on the same numbers.
"""

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mftcoder.errors import ModelError

aten = torch.ops.aten
PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten._scaled_mm.default, aten._grouped_mm.default})
"""Operations whose results `selective` keeps, in addition to attention."""


@dataclass(frozen=True)
class Recomputation:
    """How much is recomputed in the backward pass."""

    whole: float = 0.0  # fraction of the layers, from the first on, that are recomputed completely
    selective: bool = False  # whether the other layers recompute everything except products and attention

    @classmethod
    def of(cls, setting: bool | float | str) -> "Recomputation":
        """The recomputation of a value of `train.gradient_checkpointing` other than `auto`."""
        return cls(selective=True) if setting == "selective" else cls(float(setting), 0 < float(setting) < 1)

    @property
    def setting(self) -> bool | float | str:
        """The value of `train.gradient_checkpointing` for this recomputation."""
        if self.whole in (0, 1):
            return "selective" if self.selective and not self.whole else bool(self.whole)
        return self.whole

    def whole_layers(self, count: int) -> int:
        """The number of layers, out of `count`, that are recomputed completely."""
        return round(self.whole * count)

    def __str__(self) -> str:
        if self.whole == 1:
            return "recompute all layers"
        between = "recompute norms and SwiGLU" if self.selective else "recompute nothing"
        return f"{between}, and {self.whole:.0%} of the layers wholly" if self.whole else between


def layer_stack(causal_lm: Any) -> nn.ModuleList | None:
    """The module list of the transformer blocks; None if it is not found."""
    count = causal_lm.config.num_hidden_layers
    stacks = (module for module in causal_lm.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(stacks, None)


def decoder_layers(causal_lm: Any) -> list[nn.Module]:
    """The transformer blocks, first to last; none if they are not found."""
    return list(layer_stack(causal_lm) or ())


def recompute_layers(layers: Sequence[nn.Module], how: Recomputation) -> None:
    """Make the layers recompute. Call it before they are compiled or sharded. ModelError if there are no layers."""
    if how != Recomputation() and not layers:
        raise ModelError("train.gradient_checkpointing: this model's layers were not found. Set it to false")
    wholly = how.whole_layers(len(layers))
    for number, layer in enumerate(layers):
        if number < wholly or how.selective:
            kept = None if number < wholly else _keep_products
            layer.forward = functools.partial(_recomputing, layer.forward, kept)


def _recomputing(
    forward: Callable[..., Any], contexts: Callable[..., Any] | None, *inputs: Any, **keywords: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **keywords)
    extra: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    return checkpoint(forward, *inputs, use_reentrant=False, **extra, **keywords)


def _keep_products() -> Any:
    kept = _Kept()
    # torch's own check refuses every change of a kept result; `_Kept` refuses only changes that would be wrong.
    contexts = create_selective_checkpoint_contexts(kept, allow_cache_entry_mutation=True)
    kept.results = contexts[0].storage
    return contexts


class _Kept:
    """Decides for each operation of one forward pass whether its result is kept.

    A kept result may be changed in place (for example by adding a LoRA product to it). The change is not repeated, which is correct
    if no recomputed operation has read the result before the change; otherwise RuntimeError.
    """

    results: Any
    """The results that torch keeps, by operation."""

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._read: set[int] = set()
        self._unseen: Any = None  # the last kept operation, if its result was not available yet
        self._answers: dict[Any, deque[CheckpointPolicy]] = defaultdict(deque)

    def __call__(self, context: Any, operation: Any, *inputs: Any, **keywords: Any) -> CheckpointPolicy:
        """Newer versions of torch call it after the operation. torch 2.11 calls it before, and again at the recomputation."""
        if context.is_recompute:
            return self._answers[operation].popleft() if self._answers[operation] else CheckpointPolicy.MUST_SAVE
        answer = self._answer(context, operation, inputs, keywords)
        self._answers[operation].append(answer)
        return answer

    def _answer(
        self, context: Any, operation: Any, inputs: Sequence[Any], keywords: dict[str, Any]
    ) -> CheckpointPolicy:
        if self._unseen is not None:
            self._kept |= _storages([wrapped.val for wrapped in tree_leaves(self.results[self._unseen][-1])])
            self._unseen = None
        keeps = _is_kept(operation, inputs, keywords)
        changed = _changed(operation, inputs) & self._kept
        if changed & self._read:
            raise RuntimeError(
                f"{operation} changes a result that was already used, which cannot be recomputed selectively. Set "
                "train.gradient_checkpointing: true"
            )
        if not keeps and not changed:
            self._read |= _storages((inputs, keywords)) & self._kept
            return CheckpointPolicy.PREFER_RECOMPUTE
        if hasattr(context, "op_output"):
            self._kept |= _storages(context.op_output)
        else:
            self._unseen = operation
        return CheckpointPolicy.MUST_SAVE


def _is_kept(operation: Any, inputs: Sequence[Any], keywords: dict[str, Any]) -> bool:
    """Whether the result is kept: of products, and of attention without dropout (random numbers must be drawn again in order)."""
    if operation in PRODUCTS:
        return True
    name = getattr(operation, "name", lambda: "")()
    if not ("attention" in name or "attn" in name) or operation._schema.is_mutable:
        return False
    arguments = {
        given.name: value for given, value in zip(operation._schema.arguments, inputs, strict=False)
    } | keywords
    return not any(value for argument, value in arguments.items() if argument in ("dropout_p", "p_dropout", "dropout"))


def _changed(operation: Any, inputs: Sequence[Any]) -> set[int]:
    """The storages that the operation writes to."""
    schema = getattr(operation, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    written = [v for a, v in zip(schema.arguments, inputs, strict=False) if a.alias_info and a.alias_info.is_write]
    return _storages(written)


def _storages(values: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
