"""Products in fp8 where every weight trains, through torchao's float8: the weights stay what they are, each product rounds its factors.

Goes in: a loaded model and the recipe. Comes out: the same model with the same parameters, whose linear layers but the head
multiply in fp8 in all three products of a step. A frozen base below LoRA is `fp8_linear.py`'s instead.
"""

import importlib.util
import warnings
from dataclasses import replace
from typing import Any

from mftcoder.errors import ModelError
from mftcoder.kernels.linear.fp8 import MULTIPLE
from mftcoder.models.layers.fp8_linear import fits


def check_recipe(recipe: str | None) -> None:
    """ModelError if `train.fp8_recipe` needs what is not installed."""
    if recipe and importlib.util.find_spec("torchao") is None:
        raise ModelError(
            f"train.fp8_recipe: {recipe} needs torchao, which is not installed. Install it with: pip install 'mftcoder[fp8]', "
            "or remove the line to train in model.dtype"
        )


def multiply_in_fp8(model: Any, recipe: str, *, emulate: bool) -> None:
    """Let torchao take over the products of the linear layers, the head excepted; ModelError if it takes none.

    `emulate` rounds as a GPU would and multiplies in float32, on any device.
    """
    check_recipe(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that this build of torchao lacks and that are not used here
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if fits(layer) and layer is not head]
    if not layers:
        raise ModelError(
            f"{type(model).__name__}: has no linear layer whose sizes are multiples of {MULTIPLE}, which fp8 needs. Remove "
            "train.fp8_recipe"
        )
    # The product that makes a weight's gradient sums over positions: any number of them, only with padding.
    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda layer, _: layer in layers)
