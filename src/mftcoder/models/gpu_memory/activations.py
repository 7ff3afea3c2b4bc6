"""Count the bytes that a forward pass keeps for its backward pass, on a model without numbers (the meta device).

The model has its adapter attached and the dtype of the run. Its forward pass runs on meta tensors, and the memory that is still in use
afterwards is added up. So the count follows the model's own code, with LoRA and experts. Attention is counted as FlashAttention: query,
key, value, result and one float32 per head and position.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface

from mftcoder.models.gpu_memory.recompute import PRODUCTS, Recomputation, decoder_layers, layer_stack, recompute_layers

ATTENTION = "counted"


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch that are kept until the backward pass."""

    nothing_recomputed: int
    selective: int
    all_recomputed: int
    layers: int

    def kept(self, how: Recomputation) -> int:
        """The bytes with this recomputation."""
        fraction = how.whole_layers(self.layers) / self.layers
        others = self.selective if how.selective else self.nothing_recomputed
        return round(fraction * self.all_recomputed + (1 - fraction) * others)

    @property
    def one_layer(self) -> int:
        """The bytes that one layer keeps without recomputation."""
        return round((self.nothing_recomputed - self.all_recomputed) / self.layers)


def count_activations(model: Any, rows: int, length: int, *, compiled: bool) -> Activations:
    """The activations of a micro-batch of `rows` x `length` positions.

    Compiled layers keep only results and inputs of products by themselves, and recompute the rest.
    """
    model = model.train()
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    with _counted_attention(causal_lm):
        selective, nothing, whole = (
            _count(causal_lm, rows, length, how)
            for how in (Recomputation(selective=True), Recomputation(), Recomputation(whole=1.0))
        )
    kept = min(nothing.alive, selective.alive + selective.inputs_of_products) if compiled else nothing.alive
    return Activations(kept, min(kept, selective.alive), whole.alive, len(decoder_layers(causal_lm)))


@dataclass(frozen=True)
class _Counted:
    alive: int
    inputs_of_products: int  # bytes of those that are no longer alive


def _count(causal_lm: Any, rows: int, length: int, how: Recomputation) -> _Counted:
    """The count of the whole model: one layer of each kind is counted, then a second one, whose part is multiplied."""
    layers = decoder_layers(causal_lm)
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    once = [members[0] for members in kinds.values()]
    first = _run(causal_lm, rows, length, how, once)
    alive, inputs = first.alive, first.inputs_of_products
    for members in kinds.values():
        if len(members) > 1:
            again = _run(causal_lm, rows, length, how, [*once, members[1]])
            alive += (len(members) - 1) * (again.alive - first.alive)
            inputs += (len(members) - 1) * (again.inputs_of_products - first.inputs_of_products)
    return _Counted(alive, inputs)


def _kind(layer: nn.Module) -> Any:
    weights = ((name, weight.shape, weight.requires_grad) for name, weight in layer.named_parameters())
    return type(layer), tuple(weights)


def _run(causal_lm: Any, rows: int, length: int, how: Recomputation, layers: list[nn.Module]) -> _Counted:
    """The count of one forward pass through these layers only."""
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    live = _LiveMemory([*causal_lm.parameters(), *causal_lm.buffers(), ids])
    with _new_objects_apart():
        with _only(causal_lm, layers, how), torch.enable_grad(), live:
            output = causal_lm.base_model(input_ids=ids, position_ids=ids, attention_mask=None, use_cache=False)
            hidden = output.last_hidden_state
            del output
        return live.count(apart_from=hidden)


@contextmanager
def _new_objects_apart() -> Iterator[None]:
    """In this block new objects stay in the youngest generation: `gc.collect(0)` finds all their cycles in milliseconds.

    A collection of all that a training process has imported takes some tenths of a second.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _only(causal_lm: Any, layers: list[nn.Module], how: Recomputation) -> Iterator[None]:
    """In this block the model has only these layers, with recomputation."""
    stack = layer_stack(causal_lm)
    assert stack is not None
    whole = dict(stack._modules)
    stack._modules.clear()
    stack._modules.update({str(index): layer for index, layer in enumerate(layers)})
    recompute_layers(layers, how)
    try:
        yield
    finally:
        stack._modules.clear()
        stack._modules.update(whole)
        for layer in layers:
            vars(layer).pop("forward", None)


class _LiveMemory(TorchDispatchMode):
    """The memory that operations have allocated and that is still in use."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: Any = WeakIdKeyDictionary(ref_type=weakref.ref)
        self._inputs: list[tuple[weakref.ref[Any], int]] = []
        self._listed: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and remember its results and, if it is a product, its inputs."""
        made = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            for storage in self._new_storages(args, self._listed):
                self._inputs.append((weakref.ref(storage), storage.nbytes()))
        for _ in self._new_storages(made, self._live):
            pass
        return made

    def _new_storages(self, values: Any, seen: Any) -> Iterator[Any]:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known and storage not in seen:
                    seen[storage] = True
                    yield storage

    def count(self, *, apart_from: Tensor) -> _Counted:
        """The bytes that are still in use, except for this tensor's."""
        gc.collect(0)
        own = apart_from.untyped_storage()._cdata
        alive = sum(storage.nbytes() for storage in self._live if storage._cdata != own)
        return _Counted(alive, sum(size for storage, size in self._inputs if storage() is None))


@contextmanager
def _counted_attention(causal_lm: Any) -> Iterator[None]:
    AttentionInterface.register(ATTENTION, _attention)
    before = causal_lm.config._attn_implementation
    causal_lm.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        causal_lm.config._attn_implementation = before


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """Keep what FlashAttention keeps; query [B, H, L, D], key and value [B, G, L, D] -> [B, L, H, D]."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    attended: Tensor = flash(query, key, value, 0.0, True)[0]
    return attended.transpose(1, 2).contiguous(), None
