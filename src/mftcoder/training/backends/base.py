"""What the training code asks of the machinery below it, and the answer for one device.

The rest of the code thinks in sums: over all ranks gradients are sums, never means. Nothing here knows tasks, losses or files.
Each engine for many devices is one file beside this one, `<name>_backend.py`.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.kernels.context_group import ALONE, ContextGroup
from mftcoder.training.backends.process_group import check_context_parallel_size, launched_processes, pick_device
from mftcoder.training.optimizer import MasterAdamW, Optimizer, check_optimizer
from mftcoder.training.sharded_state import Shares

Value = TypeVar("Value")
NamedParameters = Iterable[tuple[str, nn.Parameter]]


class Decoder(Protocol):
    """What a backend may take hold of in a language model."""

    module: Any
    causal_lm: Any
    decoder: Callable[..., Any]
    surround: Callable[[Callable[[], Tensor]], Tensor]
    device: torch.device

    def decoder_layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        ...


class Backend(Protocol):
    """One process's view of the device and of its fellows. All ranks call each method, in the same order."""

    config: BackendConfig
    """What it was told; a memory plan may change what lies in the host's memory, before a model is placed."""
    device: torch.device
    load_device: torch.device
    """Where the weights are read to; `place` brings them to the device."""
    rank: int
    world_size: int
    data_rank: int
    """Which share of a step's rows this rank runs; ranks that share rows have the same."""
    data_world_size: int
    """How many shares there are."""
    context: ContextGroup
    """The ranks that share this one's rows; known once joined."""
    lockstep: bool
    """Whether every rank must run every backward, trained tokens or none, because the ranks wait for each other in it."""

    def check(self, config: RunConfig) -> None:
        """ConfigError for what this engine cannot carry; called before a weight is loaded."""
        ...

    def joined(self) -> AbstractContextManager[None]:
        """Be one of the ranks, from here to the end of the block."""
        ...

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run `action` on rank 0; every rank returns its value or raises its error."""
        ...

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Bring the loaded model to where it trains; every rank holds the same weights before and the whole of them or a share after."""
        ...

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """The optimizer of what trains in the placed model."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` over all ranks, on every rank."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on one of the ranks."""
        ...

    def share(self, value: Value) -> list[Value]:
        """Each rank's value, by rank, on every rank."""
        ...

    def whole_weights(self, module: Any) -> dict[str, Tensor] | None:
        """What a checkpoint holds of the module, on rank 0, where it lies in pieces; None: the module itself has it."""
        ...

    def shares(self, module: Any, optimizer: Optimizer) -> Shares | None:
        """What each rank writes of a sharded checkpoint; None where every rank has all, and rank 0 writes it."""
        ...


class LocalBackend:
    """One process, one device."""

    rank = 0
    world_size = 1
    data_rank = 0
    data_world_size = 1
    context = ALONE
    lockstep = False

    def __init__(self, config: BackendConfig):
        self.config = config
        self._context_size = config.context_parallel_size
        self.device = self.load_device = pick_device(config.device)

    def check(self, config: RunConfig) -> None:
        """One process carries everything; several would each train the whole."""
        check_optimizer(config.train)
        if launched_processes() > 1:
            raise ConfigError(
                f"backend.name: local trains on one device, but {launched_processes()} processes were started. "
                "Use auto, ddp or fsdp2."
            )

    def joined(self) -> AbstractContextManager[None]:
        """Nobody to join."""
        check_context_parallel_size(self._context_size, 1)
        return nullcontext()

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run it: this is rank 0."""
        return action()

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """It is there."""

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on float32 masters."""
        return MasterAdamW(named_parameters, config)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def any_rank(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def share(self, value: Value) -> list[Value]:
        """A list of one."""
        return [value]

    def whole_weights(self, module: Any) -> dict[str, Tensor] | None:
        """The module has them."""
        return None

    def shares(self, module: Any, optimizer: Optimizer) -> Shares | None:
        """There is but one."""
        return None
