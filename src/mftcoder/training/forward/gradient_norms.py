"""The gradient norm of each task on one shared layer, which GradNorm compares.

It takes one forward pass, and per task a backward pass down to that layer. The result does not depend on how the rows are split into
micro-batches and ranks, and the parameters' gradients are not touched.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mftcoder.balancing.base import Float
from mftcoder.data.batches.loader import StepData
from mftcoder.errors import ConfigError
from mftcoder.training.backends.base import Backend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.preference import PairLosses


def gradient_norms(
    model: LanguageModel, data: StepData, backend: Backend, *, layer: int, pairs: PairLosses | None = None
) -> Float:
    """Norm [K] of the gradient of each task's mean loss with respect to decoder layer `layer`; nan without tokens."""
    parameters = layer_parameters(model, layer)
    size = sum(parameter.numel() for parameter in parameters)
    totals = torch.zeros(model.num_tasks, size, dtype=torch.float32, device=backend.device)
    for batch in data.micro_batches:
        for task, objective in model.task_sums(batch, pairs.of(batch) if pairs else None):
            grads = torch.autograd.grad(objective, parameters, retain_graph=True, allow_unused=True)
            totals[task] += _flat(grads, parameters)
    norms = backend.group.sum_over_ranks(totals).double().norm(dim=1).cpu().numpy()
    units = data.counts.units
    return np.where(units > 0, norms / np.maximum(units, 1), np.nan)


def layer_parameters(model: LanguageModel, layer: int) -> list[nn.Parameter]:
    """The trained weights of one decoder layer; ConfigError if there is no such layer, or if it has no trained weights."""
    layers = model.decoder_layers()
    if not -len(layers) <= layer < len(layers):
        raise ConfigError(
            f"balancer.layer: {layer} is not one of this model's {len(layers)} decoder layers. -1 is the last."
        )
    parameters = [parameter for parameter in layers[layer].parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(
            f"balancer.layer: decoder layer {layer} has no trained weights. Choose another, or extend adapter.lora_target."
        )
    return parameters


def _flat(grads: tuple[Tensor | None, ...], parameters: list[nn.Parameter]) -> Tensor:
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
    return torch.cat([part.flatten().float() for part in parts])
