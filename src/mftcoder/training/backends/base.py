"""The protocol of backends, and the backend for one device.

Gradients over ranks are sums, never means. Tasks, losses and files are left to the rest of training. Each engine for several devices
is one file beside this one.
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
from mftcoder.training.sharded_state import ShardedState

Value = TypeVar("Value")
NamedParameters = Iterable[tuple[str, nn.Parameter]]


class Decoder(Protocol):
    """The parts of a LanguageModel that a backend may use and replace."""

    module: Any
    causal_lm: Any
    decoder: Callable[..., Any]
    run_forward: Callable[[Callable[[], Tensor]], Tensor]
    device: torch.device

    def decoder_layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        ...


class Backend(Protocol):
    """The device and the other ranks, as one process sees them. All ranks call each method in the same order."""

    config: BackendConfig
    """The backend section; a memory plan may change its `offload` before a model is placed."""
    device: torch.device
    load_device: torch.device
    """Where weights are loaded; `place` moves them to the device."""
    rank: int
    world_size: int
    data_rank: int
    """Which part of a step's rows this rank runs; ranks that share rows have the same value."""
    data_world_size: int
    """The number of these parts."""
    context: ContextGroup
    """The ranks that share this one's rows; set by `joined`."""
    lockstep: bool
    """True if every rank must run every backward pass, even without trained tokens, because ranks wait for each other in it."""

    def check(self, config: RunConfig) -> None:
        """ConfigError for options that this engine does not support; called before a weight is loaded."""
        ...

    def joined(self) -> AbstractContextManager[None]:
        """Connect to the other ranks for the duration of the block."""
        ...

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run `action` on rank 0. Every rank returns its value, or raises its error."""
        ...

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Prepare the loaded model for training. Before, every rank has all weights; after, all of them or its shards."""
        ...

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """The optimizer of the trained weights of the placed model."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` over all ranks, on every rank."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """True if the flag is true on any rank."""
        ...

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks in the order of ranks, on every rank."""
        ...

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        """The weights of a checkpoint, complete on rank 0; None if the module itself has them complete."""
        ...

    def sharded_state(self, module: Any, optimizer: Optimizer) -> ShardedState | None:
        """What each rank writes of a sharded checkpoint; None if every rank has everything, and rank 0 writes it."""
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
        """ConfigError if several processes were started: each would train on its own."""
        check_optimizer(config.train)
        if launched_processes() > 1:
            raise ConfigError(
                f"backend.name: local trains on one device, but {launched_processes()} processes were started. "
                "Use auto, ddp or fsdp2."
            )

    def joined(self) -> AbstractContextManager[None]:
        """Check that no row is to be shared; there are no other ranks."""
        check_context_parallel_size(self._context_size, 1)
        return nullcontext()

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run the action: this is rank 0."""
        return action()

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Do nothing: the model is on its device."""

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on float32 masters."""
        return MasterAdamW(named_parameters, config)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The values themselves, of the only rank."""
        return values

    def any_rank(self, flag: bool) -> bool:
        """The flag itself, of the only rank."""
        return flag

    def all_gather(self, value: Value) -> list[Value]:
        """A list of one value."""
        return [value]

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        """None: the module has them."""
        return None

    def sharded_state(self, module: Any, optimizer: Optimizer) -> ShardedState | None:
        """None: there is one rank."""
        return None
