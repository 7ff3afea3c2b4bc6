"""A faster forward for peft's LoRA layers: layers with the same input are computed as one function (`kernels/linear/lora.py`).

Parameters, names and files stay peft's. The faster forward takes plain layers: one active adapter without dropout, DoRA or bias,
over a frozen linear layer. Other layers keep peft's forward, and `kept_by_peft` gives the reasons. A layer is checked at each call,
so that merging, disabling and other changes at run time work as in peft.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mftcoder.kernels.linear import nf4
from mftcoder.kernels.linear.frozen import FrozenWeight
from mftcoder.kernels.linear.lora import LoraWeights, lora_linear
from mftcoder.models.layers.fp8 import Fp8Linear

# Layers of one module that published architectures call on the same tensor. A missing name costs only speed, and layers that are
# called on different tensors leave their group at the first such call.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
FEW_ROWS = 32  # below this, a 4-bit layer uses bitsandbytes' own product, which does not unpack the weight


def speed_up(model: nn.Module) -> None:
    """Give every plain LoRA layer of a peft model the faster forward."""
    # A compiled layer that is recomputed in the backward pass passes outputs to its group only in the forward pass, which is enough.
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
    for layer in _lora_layers(model):
        if why_peft(layer) is None:
            kind: Any = type(layer)
            layer.__class__ = _faster(kind)
            InputGroup([layer])
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SAME_INPUT:
            plain: list[Any] = [children[name] for name in names if isinstance(children.get(name), PlainLora)]
            if plain:
                InputGroup(plain)


def kept_by_peft(model: nn.Module) -> Iterator[str]:
    """A line for each reason why layers keep peft's own forward, with their number."""
    reasons = Counter(why_peft(layer) for layer in _lora_layers(model))
    yield from (
        f"{count} LoRA layers keep peft's slower forward: {reason}" for reason, count in reasons.items() if reason
    )


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, lora.LoraLayer)]


def why_peft(layer: Any) -> str | None:
    """Why a LoRA layer keeps peft's forward; None if it is plain."""
    if not isinstance(layer, PlainLora) and type(layer) not in _plain_kinds():
        return f"{type(layer).__name__} over {type(layer.get_base_layer()).__name__}"
    names, base = list(layer.lora_A.keys()), layer.base_layer
    if _how(base) is None:
        return f"over {type(base).__name__}"
    if len(names) != 1 or layer.active_adapters != names:
        return "not one active adapter"
    if names[0] in layer.lora_variant:
        return "DoRA or another variant of LoRA"
    if not isinstance(layer.lora_dropout[names[0]], nn.Identity):
        return "dropout"
    if layer.lora_B[names[0]].bias is not None:
        return "a bias in the addition"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "a base that trains"
    parts = (layer.lora_A[names[0]], layer.lora_B[names[0]], base)
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return "hooks on its inner layers"  # ZeRO-3 gathers weights in them
    return None


@functools.cache
def _plain_kinds() -> tuple[type, ...]:
    return (lora.Linear, *([lora.Linear4bit] if hasattr(lora, "Linear4bit") else []))


@functools.cache
def _faster(kind: type) -> type:
    """A subclass of peft's class with the faster forward."""
    return type(f"Plain{kind.__name__}", (PlainLora, kind), {})


def _how(base: Any) -> str | None:
    """How a layer holds its weight: a key of frozen.PRODUCTS, or None if it is unknown."""
    if type(base) is nn.Linear or type(base) is Conv1D:
        return "plain"
    if type(base) is Fp8Linear:
        return "fp8"
    state = _quant_state(base)
    if state is None or not nf4.is_known(state):
        return None
    return "nf4_fp8" if getattr(base, "fp8_products", False) else "nf4"


def _quant_state(base: Any) -> Any:
    """bitsandbytes' state of a 4-bit layer; it is on the layer itself if an engine has replaced the weight."""
    return getattr(getattr(base, "weight", None), "quant_state", None) or getattr(base, "quant_state", None)


def _frozen(base: Any) -> FrozenWeight:
    how = _how(base)
    assert how is not None
    if how == "plain":
        held: tuple[Tensor, ...] = (base.weight.t() if type(base) is Conv1D else base.weight,)
    elif how == "fp8":
        held = (base.weight, base.weight_scale)
    else:
        held = nf4.held_tensors(base.weight, _quant_state(base))
    return FrozenWeight(how, held, base.bias)


class PlainLora:
    """The faster forward of a LoRA layer: it computes with its group if the call is plain, otherwise as peft does."""

    group: "InputGroup"
    place: int  # in its group

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        if args or kwargs or not self.is_plain_for(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.group.output(self, x)

    def is_plain_for(self: Any, x: Tensor) -> bool:
        """Whether this call needs nothing of peft: no adapter is disabled or merged, and nothing is cast."""
        if self.disable_adapters or self.merged or why_peft(self) is not None:
            return False
        a, _, base = self.parts()
        if x.dtype != a.weight.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):
            return False  # asking for autocast raises on meta tensors
        return _how(base) != "nf4" or x.numel() >= FEW_ROWS * x.shape[-1]

    def parts(self: Any) -> tuple[nn.Linear, nn.Linear, Any]:
        """A, B and the frozen layer."""
        (name,) = self.lora_A.keys()
        return self.lora_A[name], self.lora_B[name], self.base_layer

    def weights(self) -> LoraWeights:
        a, b, base = self.parts()
        return LoraWeights(a.weight, b.weight, _frozen(base))

    def scale(self: Any) -> float:
        (name,) = self.lora_A.keys()
        return float(self.scaling[name])

    def common_facts(self: Any) -> tuple[Any, ...]:
        """Properties that the layers of a group must share."""
        a, _, base = self.parts()
        return self.in_features, self.scale(), _how(base), a.weight.dtype, a.weight.device


class InputGroup:
    """Layers that are called on the same tensor: the first call computes all outputs, the other calls return theirs.

    A waiting output is returned only for the same tensor object and unchanged weights; any other call computes again. A layer
    whose output still waits when the group is called on another tensor leaves the group, because it has another input.
    """

    layers: list[Any]
    _waiting: list[Tensor | None]
    _input: Tensor | None
    _state: tuple[Any, ...]

    def __init__(self, layers: Sequence[Any]):
        self._take(layers)

    def _take(self, layers: Sequence[Any]) -> None:
        """Make these the layers of the group, without waiting outputs."""
        self.layers = list(layers)
        for place, layer in enumerate(self.layers):
            layer.group, layer.place = self, place
        self._forget()

    def _forget(self) -> None:
        self._waiting, self._input, self._state = [None] * len(self.layers), None, ()

    def output(self, layer: PlainLora, x: Tensor) -> Tensor:
        """The layer's output [..., out] of x [..., in]."""
        if self._input is not None and self._input is not x:
            self._let_go()
            return layer.group.output(layer, x)
        if len(self.layers) == 1:
            return self._computed(self.layers, x)[0]
        y = self._waiting[layer.place]
        if y is None or self._state != self._now(x):
            facts = layer.common_facts()
            together = [other for other in self.layers if other.common_facts() == facts and other.is_plain_for(x)]
            self._forget()
            for other, output in zip(together, self._computed(together, x), strict=True):
                self._waiting[other.place] = output
            self._input, self._state = x, self._now(x)
            y = self._waiting[layer.place]
        assert y is not None
        self._waiting[layer.place] = None
        if all(waiting is None for waiting in self._waiting):
            self._forget()
        return y

    @staticmethod
    def _computed(layers: Sequence[PlainLora], x: Tensor) -> tuple[Tensor, ...]:
        return lora_linear(x, [layer.weights() for layer in layers], layers[0].scale())

    def _let_go(self) -> None:
        """Remove the layers whose outputs are waiting from the group."""
        waited = [layer for layer in self.layers if self._waiting[layer.place] is not None]
        self._take([layer for layer in self.layers if self._waiting[layer.place] is None])
        for layer in waited:
            InputGroup([layer])

    def _now(self, x: Tensor) -> tuple[Any, ...]:
        """A value that changes when a waiting output becomes outdated. Inside a compiled layer nothing changes."""
        if torch.compiler.is_compiling():
            return ()
        read = (x, *(part.weight for layer in self.layers for part in layer.parts()[:2]))
        versions = (0 if tensor.is_inference() else tensor._version for tensor in read)
        return torch.is_grad_enabled(), *versions, *(layer.scale() for layer in self.layers)
