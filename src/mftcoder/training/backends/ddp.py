"""Every rank holds the whole model: data parallelism on torch.distributed, gloo on CPUs and nccl on GPUs.

The float32 gradients are added up over ranks once a step, in buckets, after the last micro-batch. Ranks need not have the same
tokens nor any; a weight that got no gradient on any rank is left as it is, exactly as on one device.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.training.backends.base import Decoder, NamedParameters
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.optimizer import MasterAdamW, Optimizer, check_optimizer
from mftcoder.training.sharded_state import Shares

BUCKET_ELEMENTS = 1 << 25  # 128 MiB of float32 a message


class DdpBackend(ProcessGroup):
    """One whole model a rank."""

    def __init__(self, config: BackendConfig):
        super().__init__(config)
        self.lockstep = config.context_parallel_size > 1
        self.load_device = self.device

    def check(self, config: RunConfig) -> None:
        """ConfigError for what is not installed; what one device can do, several can."""
        check_optimizer(config.train)

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Rank 0's trained weights to everyone: drawn anew, they could differ between devices of different kinds."""
        self.copy_from_rank0([parameter.data for parameter in model.module.parameters() if parameter.requires_grad])

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on float32 masters, with the sum over ranks in front of its step."""
        named = list(named_parameters)
        sizes = [parameter for _, parameter in named if parameter.requires_grad]
        return MasterAdamW(named, config, sum_gradients=partial(self._sum_gradients, sizes))

    def _sum_gradients(self, like: Sequence[Tensor], gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Float32 sums over ranks; None where no rank has a gradient."""
        touched = self.sum_in_place(torch.tensor([int(g is not None) for g in gradients]), "finding the gradients")
        sums: list[Tensor | None] = [
            (torch.zeros_like(one, dtype=torch.float32) if gradient is None else gradient.float()) if ranks else None
            for one, gradient, ranks in zip(like, gradients, touched.tolist(), strict=True)
        ]
        for bucket in _buckets([one for one in sums if one is not None]):
            flat = self.sum_in_place(torch.cat([grad.flatten() for grad in bucket]), "summing gradients")
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))
        return sums

    def backward(self, objective: Tensor) -> None:
        """This rank's share; summed once a step."""
        objective.backward()

    def whole_weights(self, module: Any) -> dict[str, Tensor] | None:
        """Every rank has them all."""
        return None

    def shares(self, module: Any, optimizer: Optimizer) -> Shares | None:
        """Nothing is shared out."""
        return None


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, in groups of about BUCKET_ELEMENTS elements."""
    groups: list[list[Tensor]] = []
    size = BUCKET_ELEMENTS
    for tensor in tensors:
        if size + tensor.numel() > BUCKET_ELEMENTS:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.numel()
    return groups
