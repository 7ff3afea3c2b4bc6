"""What the training code asks of the machinery below it, and the answer for one device.

The rest of the code thinks in sums: a backend whose engine averages gradients over ranks multiplies by the world size inside
`backward`. Nothing here knows tasks, losses or files.
"""

from typing import Protocol

import torch
from torch import Tensor

from mftcoder.config.schema import BackendConfig
from mftcoder.errors import ConfigError


class Backend(Protocol):
    """One process's view of the device and of its fellows."""

    device: torch.device
    rank: int
    world_size: int

    def backward(self, objective: Tensor) -> None:
        """Add the objective's gradients to the parameters'; over all ranks they are sums, not means."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` over all ranks, on every rank."""
        ...


class LocalBackend:
    """One process, one device."""

    rank = 0
    world_size = 1

    def __init__(self, config: BackendConfig):
        self.device = pick_device(config.device)

    def backward(self, objective: Tensor) -> None:
        """Plain autograd."""
        objective.backward()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


def pick_device(wanted: str) -> torch.device:
    """The GPU if there is one (or it is asked for), else the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend.device: cuda is asked for, but torch sees no CUDA device. Use auto or cpu.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
