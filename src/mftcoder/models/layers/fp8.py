"""Linear layers that multiply in fp8: frozen ones below LoRA, and trained ones through torchao's float8.

A frozen weight is held in e4m3, one byte per weight, and multiplied as in `kernels/linear/fp8.py`. Its bytes lie in a parameter of
the model's own dtype, two in one number, so that an engine that shards or moves parameters treats them like any other and converts
nothing. Where every weight trains, the weights keep their dtype and each product rounds its factors.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mftcoder.errors import ModelError
from mftcoder.kernels.linear.fp8 import E4M3, MULTIPLE, fp8_product, round_rows, round_weight


class Fp8Linear(nn.Linear):
    """y = x W^T + bias; `weight` [out, in / 2] holds the bytes of W [out, in]."""

    weight_scale: Tensor

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rounded, scale = round_weight(linear.weight.detach())
        self.weight = nn.Parameter(rounded.view(linear.weight.dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self.weight, self.weight_scale, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def whole_weight(self) -> Tensor:
        """The values of the bytes [out, in], in the model's dtype."""
        return self.weight.view(E4M3).to(self.weight.dtype) * self.weight_scale.to(self.weight.dtype)


def fits(layer: nn.Module) -> bool:
    """Whether e4m3 products support a layer: a plain linear one of suitable sizes."""
    return type(layer) is nn.Linear and sizes_fit(layer.out_features, layer.in_features)


def sizes_fit(*sizes: int) -> bool:
    """Whether e4m3 products support a weight of these sizes."""
    return all(size % MULTIPLE == 0 for size in sizes)


def without_kept(layers: dict[str, nn.Module], kept: Sequence[str]) -> dict[str, nn.Module]:
    """The layers by path, without those that model.modules_to_not_convert covers: `layers.1` covers model.layers.1.mlp.up_proj.

    ModelError for a name that covers no layer, and if no layer is left.
    """
    if unknown := [name for name in kept if not any(_covers(name, path) for path in layers)]:
        known = ", ".join(sorted({path.rpartition(".")[2] for path in layers})) or "none"
        raise ModelError(
            f"model.modules_to_not_convert: {', '.join(unknown)}: no layer that would be converted has this in its path (the head "
            f"never is). Such layers are named {known}"
        )
    left = {path: layer for path, layer in layers.items() if not any(_covers(name, path) for name in kept)}
    if kept and not left:
        raise ModelError(
            f"model.modules_to_not_convert: {', '.join(kept)}: leaves no layer to convert. Name fewer layers, or remove "
            "model.quantization and train.fp8_recipe"
        )
    return left


def _covers(name: str, path: str) -> bool:
    return f".{name}." in f".{path}."


def hold_in_fp8(model: Any, names: list[str], device: torch.device | str) -> None:
    """Replace each named layer by an Fp8Linear, one by one: its weight moves to the device, and the original is freed."""
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Fp8Linear(getattr(owner, child).to(device)))


class _Product(torch.autograd.Function):
    """The product and its gradient, both in e4m3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """[N, in] -> [N, out]."""
        ctx.save_for_backward(held, scale)
        return fp8_product(round_rows(x), (held, scale), bias, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        """[N, out] -> [N, in]."""
        slope = slopes[0]
        slope_x = fp8_product(round_rows(slope), ctx.saved_tensors, dtype=slope.dtype, transposed=True)
        return slope_x, None, None, None


def check_recipe(recipe: str | None) -> None:
    """ModelError if `train.fp8_recipe` needs what is not installed."""
    if recipe and importlib.util.find_spec("torchao") is None:
        raise ModelError(
            f"train.fp8_recipe: {recipe} needs torchao, which is not installed. Install it with: pip install 'mftcoder[fp8]', "
            "or remove the line to train in model.dtype"
        )


def multiply_in_fp8(model: Any, recipe: str, *, emulate: bool, kept: Sequence[str] = ()) -> None:
    """Let torchao compute the products of the linear layers except the head, in the forward and the backward pass.

    `kept` names layers as model.modules_to_not_convert does. `emulate` rounds as a GPU would and multiplies in float32, on any device. ModelError if no layer is suitable.
    """
    check_recipe(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels that this build of torchao lacks and that are not used here
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    head = model.get_output_embeddings()
    layers = {path: layer for path, layer in model.named_modules() if fits(layer) and layer is not head}
    if not layers:
        raise ModelError(
            f"{type(model).__name__}: has no linear layer whose sizes are multiples of {MULTIPLE}, which fp8 needs. Remove "
            "train.fp8_recipe"
        )
    chosen = list(without_kept(layers, kept).values())
    # The product that gives a weight's gradient sums over positions; padding allows any number of them.
    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda layer, _: layer in chosen)
