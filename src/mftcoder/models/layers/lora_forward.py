"""peft's LoRA layers with a faster forward: layers that read the same input are computed as one function (`kernels/linear/lora.py`).

Goes in: a peft model. Comes out: the same model; its parameters, their names and its files stay peft's. A layer whose case is
plain (one active adapter without dropout, DoRA or bias, over a frozen linear layer) computes itself anew; every other layer
keeps peft's forward, and `kept_by_peft` says why. A plain layer asks again at each call, so that merging, disabling and
whatever else peft does at run time stays peft's business.
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
from mftcoder.models.layers.fp8_linear import Fp8Linear

# Layers of one module that published architectures call on the same tensor. A name that is missing here costs speed and nothing
# else, and layers that are called on different tensors part when that is first seen.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
FEW_ROWS = 32  # of a 4-bit layer: fewer go through bitsandbytes' own product, which does not unpack the weight


def speed_up(model: nn.Module) -> None:
    """Give every plain LoRA layer of a peft model the faster forward."""
    # A compiled layer that is recomputed in the backward pass hands outputs over in its forward pass only, which is all we need.
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
    """A line for each reason why layers compute with peft's own forward, with their number."""
    reasons = Counter(why_peft(layer) for layer in _lora_layers(model))
    yield from (
        f"{count} LoRA layers keep peft's slower forward: {reason}" for reason, count in reasons.items() if reason
    )


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, lora.LoraLayer)]


def why_peft(layer: Any) -> str | None:
    """What of a LoRA layer, as it stands, is left to peft; None if its case is plain."""
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
    """peft's class with the faster forward in front of its own."""
    return type(f"Plain{kind.__name__}", (PlainLora, kind), {})


def _how(base: Any) -> str | None:
    """How a layer holds its weight: a key of frozen.PRODUCTS, or None where that is not known here."""
    if type(base) is nn.Linear or type(base) is Conv1D:
        return "plain"
    if type(base) is Fp8Linear:
        return "fp8"
    state = _quant_state(base)
    if state is None or not nf4.is_known(state):
        return None
    return "nf4_fp8" if getattr(base, "fp8_products", False) else "nf4"


def _quant_state(base: Any) -> Any:
    """bitsandbytes' state of a 4-bit layer: the layer has it where an engine has replaced the weight."""
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
    """In front of a LoRA layer of peft: computes with its group where the case is plain, and as peft does elsewhere."""

    group: "InputGroup"
    place: int  # in its group

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        if args or kwargs or not self.is_plain_for(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.group.output(self, x)

    def is_plain_for(self: Any, x: Tensor) -> bool:
        """Whether this call can do without peft: nothing is switched, nothing is cast."""
        if self.disable_adapters or self.merged or why_peft(self) is not None:
            return False
        a, _, base = self.parts()
        if x.dtype != a.weight.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):
            return False  # torch knows no autocast on meta tensors, and raises
        return _how(base) != "nf4" or x.numel() >= FEW_ROWS * x.shape[-1]

    def parts(self: Any) -> tuple[nn.Linear, nn.Linear, Any]:
        """A, B and the frozen layer."""
        (name,) = self.lora_A.keys()
        return self.lora_A[name], self.lora_B[name], self.base_layer

    def weights(self) -> LoraWeights:
        """What the kernel takes."""
        a, b, base = self.parts()
        return LoraWeights(a.weight, b.weight, _frozen(base))

    def scale(self: Any) -> float:
        """Of the addition."""
        (name,) = self.lora_A.keys()
        return float(self.scaling[name])

    def common_facts(self: Any) -> tuple[Any, ...]:
        """What the layers of a group must have in common."""
        a, _, base = self.parts()
        return self.in_features, self.scale(), _how(base), a.weight.dtype, a.weight.device


class InputGroup:
    """Layers that are called on the same tensor: the first call computes all of them, the others take what is theirs.

    An output waits for a call with the very same tensor, with nothing changed in between; any other call computes anew. A layer
    whose output is still waiting when the group is called on another tensor leaves the group: it reads something else.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        for place, layer in enumerate(self.layers):
            layer.group, layer.place = self, place
        self._waiting: list[Tensor | None]
        self._input: Tensor | None
        self._state: tuple[Any, ...]
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
        """Part from the layers whose outputs are waiting."""
        waited = [layer for layer in self.layers if self._waiting[layer.place] is not None]
        self.layers = [layer for layer in self.layers if self._waiting[layer.place] is None]
        self.__init__(self.layers)  # type: ignore[misc]
        for layer in waited:
            InputGroup([layer])

    def _now(self, x: Tensor) -> tuple[Any, ...]:
        """Changes whenever an output that waits would no longer be right. A compiler sees no changes in the midst of a layer."""
        if torch.compiler.is_compiling():
            return ()
        read = (x, *(part.weight for layer in self.layers for part in layer.parts()[:2]))
        versions = (0 if tensor.is_inference() else tensor._version for tensor in read)
        return torch.is_grad_enabled(), *versions, *(layer.scale() for layer in self.layers)
