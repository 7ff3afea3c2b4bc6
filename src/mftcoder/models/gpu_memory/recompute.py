"""What of a decoder layer's forward pass is kept for its backward pass, and what is computed again.

Goes in: the decoder layers and how much of them to recompute. Comes out: the same layers, with forward passes that keep less.
Three amounts: nothing is recomputed; `selective`, where the results of matrix products and of attention are kept and what lies
between them (norms, rotary, SwiGLU) is computed again; or the whole layer, of which only the input is kept. The results are the
same bits in all three, because the same operations run on the same numbers.
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
"""Results that `selective` keeps, beside those of attention."""


@dataclass(frozen=True)
class Recomputation:
    """How much is recomputed in the backward pass."""

    whole: float = 0.0  # share of the layers, first ones first, of which everything is
    selective: bool = False  # whether in the others everything is but products and attention

    @classmethod
    def of(cls, setting: bool | float | str) -> "Recomputation":
        """What `train.gradient_checkpointing` says, other than `auto`."""
        return cls(selective=True) if setting == "selective" else cls(float(setting), 0 < float(setting) < 1)

    @property
    def setting(self) -> bool | float | str:
        """The value of `train.gradient_checkpointing` that says this."""
        if self.whole in (0, 1):
            return "selective" if self.selective and not self.whole else bool(self.whole)
        return self.whole

    def whole_layers(self, count: int) -> int:
        """How many of `count` layers are recomputed wholly."""
        return round(self.whole * count)

    def __str__(self) -> str:
        """In words, for a plan."""
        if self.whole == 1:
            return "recompute all layers"
        between = "recompute norms and SwiGLU" if self.selective else "recompute nothing"
        return f"{between}, and {self.whole:.0%} of the layers wholly" if self.whole else between


def layer_stack(causal_lm: Any) -> nn.ModuleList | None:
    """Where the transformer blocks are, if they are found."""
    count = causal_lm.config.num_hidden_layers
    stacks = (module for module in causal_lm.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(stacks, None)


def decoder_layers(causal_lm: Any) -> list[nn.Module]:
    """The transformer blocks, first to last; none if they are not found."""
    return list(layer_stack(causal_lm) or ())


def recompute_layers(layers: Sequence[nn.Module], how: Recomputation) -> None:
    """Make the layers recompute; before they are compiled or shared out over ranks. ModelError if there are none to do it."""
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
    # torch's own check refuses every change of a kept result; `_Kept` refuses those that would be wrong.
    contexts = create_selective_checkpoint_contexts(kept, allow_cache_entry_mutation=True)
    kept.results = contexts[0].storage
    return contexts


class _Kept:
    """Decides for each operation of one forward pass whether its result is kept.

    A kept result may be changed in place (an addition accumulated in a product's memory): the change is then not repeated. That
    is right as long as nothing that is recomputed has read the result before the change; RuntimeError otherwise.
    """

    results: Any
    """What torch keeps, by operation."""

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._read: set[int] = set()
        self._unseen: Any = None  # the operation whose result was not there yet
        self._answers: dict[Any, deque[CheckpointPolicy]] = defaultdict(deque)

    def __call__(self, context: Any, operation: Any, *inputs: Any, **keywords: Any) -> CheckpointPolicy:
        """Newer torch calls it after the operation has run. torch 2.11 calls it before, and once more when it recomputes."""
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
                f"{operation} changes a result that was used before, which cannot be recomputed selectively. Set "
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
    """Products and attention. Attention with dropout draws random numbers, and so has to run wherever others draw: recomputed."""
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
    """Storages that the operation writes to."""
    schema = getattr(operation, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    written = [v for a, v in zip(schema.arguments, inputs, strict=False) if a.alias_info and a.alias_info.is_write]
    return _storages(written)


def _storages(values: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
