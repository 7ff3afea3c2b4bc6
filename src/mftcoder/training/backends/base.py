"""The protocol of backends, and the backend for one device.

A backend holds its group: the ranks and their communication. Gradients over ranks are sums, never means. Tasks, losses and files are
left to the rest of training. Each engine for several devices is one file beside this one.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backends.process_group import Group, OneProcess, launched_processes
from mftcoder.training.optimizer import MasterAdamW, Optimizer, check_optimizer
from mftcoder.training.sharded_state import ShardedState

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


class Backend(Protocol):
    """The device and the other ranks, as one process sees them. All ranks call each method in the same order."""

    config: BackendConfig
    """The backend section; a memory plan may change its `offload` before a model is placed."""
    device: torch.device
    load_device: torch.device
    """Where weights are loaded; `place` moves them to the device."""
    lockstep: bool
    """True if every rank must run every backward pass, even without trained tokens, because ranks wait for each other in it."""

    @property
    def group(self) -> Group:
        """The ranks of the run."""

    def check(self, config: RunConfig) -> None:
        """ConfigError for options that this engine does not support; called before a weight is loaded."""

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Prepare the loaded model for training. Before, every rank has all weights; after, all of them or its shards."""

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """The optimizer of the trained weights of the placed model."""

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        """The weights of a checkpoint, complete on rank 0; None if the module itself has them complete."""

    def sharded_state(self, module: Any, optimizer: Optimizer) -> ShardedState | None:
        """What each rank writes of a sharded checkpoint; None if every rank has everything, and rank 0 writes it."""


def refused_over_shards(config: RunConfig, backend: str, others: Iterable[tuple[Any, str]]) -> list[str]:
    """Problems of options that need whole weights or compiled layers. `others`: whether an option is set, and what it would do."""
    refused = [
        (config.train.optim == "adamw_8bit", f"train.optim: {config.train.optim} over shards"),
        (config.train.master_weights != "float32", "train.master_weights: trains without float32 copies"),
        (
            config.balancer.reads_gradients,
            f"balancer.name: {config.balancer.name} compares gradients of a whole layer",
        ),
        (config.adapter.train_embeddings, "adapter.train_embeddings: keeps whole copies of the embedding"),
        (config.train.fp8_recipe, "train.fp8_recipe: gains speed in compiled layers only"),
        *others,
    ]
    return [f"{problem}, which backend {backend} does not offer. Use ddp." for applies, problem in refused if applies]


class WrittenByRank0:
    """Base of engines whose checkpoints rank 0 writes, from weights that every rank has."""

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        return None

    def sharded_state(self, module: Any, optimizer: Optimizer) -> ShardedState | None:
        return None


class LocalBackend(WrittenByRank0):
    """One process, one device."""

    lockstep = False

    def __init__(self, config: BackendConfig):
        self.config = config
        self.group: Group = OneProcess(config)
        self.device = self.load_device = self.group.device

    def check(self, config: RunConfig) -> None:
        """ConfigError if several processes were started: each would train on its own."""
        check_optimizer(config.train)
        if launched_processes() > 1:
            raise ConfigError(
                f"backend.name: local trains on one device, but {launched_processes()} processes were started. "
                "Use auto, ddp or fsdp2."
            )

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Do nothing: the model is on its device."""

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on float32 masters."""
        return MasterAdamW(named_parameters, config)
