"""The backend section: the engine that carries the training, and its options. The engines are in training/backends/."""

from typing import Literal

from pydantic import field_validator, model_validator

from mftcoder.config.section import PositiveInt, Section
from mftcoder.registry import BACKENDS, did_you_mean

REFUSED_BACKENDS = {
    "atorch": "atorch 0.2.5 does not run with today's libraries: atorch.auto and atorch.trainer fail on import (safetensors has no "
    "'_tobytes', transformers.utils no 'cached_property'). Its successor DLRover is a launcher, not a backend (docs/scaling.md). Use ddp or fsdp2",
}
"""Engines that were tried and cannot be used: name -> reason."""

OFFLOADS = {"fsdp2": ("all",), "deepspeed_zero2": ("optimizer",), "deepspeed_zero3": ("optimizer", "all")}
"""What each backend can keep in the host's memory."""


class BackendConfig(Section):
    """The engine that carries the training: one device, or many."""

    name: str = "auto"
    """local trains on one device. ddp holds the whole model on every rank. fsdp2 and deepspeed_zero3 shard weights, gradients and moments over
    the ranks; deepspeed_zero2 shards gradients and moments. auto is local for one process and ddp for several, or what accelerate's
    DeepSpeed flags say."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of each process. auto: the GPU with the process's local rank if there is one, else the CPU."""
    init_timeout_seconds: PositiveInt = 3600
    """How long ranks wait for each other at the start, and for rank 0 while it prepares the data."""
    timeout_seconds: PositiveInt = 1800
    """How long ranks wait for each other in a step. After that the run ends and names the missing rank and operation."""
    shard_group_size: PositiveInt | None = None
    """fsdp2: number of ranks that hold one copy of the model together (hybrid sharding); null: all ranks."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """fsdp2, deepspeed: dtype in which gradients are summed over ranks."""
    context_parallel_size: PositiveInt = 1
    """ddp, fsdp2: number of ranks that compute each row together, for rows that are too long for one device. Each rank gets a slice of the
    positions. The number of processes and the model's number of attention heads must be multiples of it."""
    offload: Literal["auto", "none", "optimizer", "all"] = "auto"
    """fsdp2, deepspeed: what stays in the host's memory while it is not used. none: nothing. optimizer: master weights and moments, which are
    then updated there. all (fsdp2, deepspeed_zero3): the weights too. auto: none; but if the run fits on the GPUs in no other way, what the
    backend can move. A line reports it. One process with the backend auto then uses fsdp2."""

    @field_validator("name")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value in REFUSED_BACKENDS:
            raise ValueError(REFUSED_BACKENDS[value])
        if value not in BACKENDS.names():
            raise ValueError(f"unknown backend '{value}'.{did_you_mean(value, BACKENDS.names())}")
        return value

    @model_validator(mode="after")
    def _offloads(self) -> "BackendConfig":
        offered = OFFLOADS.get(self.name, ())
        if self.offload not in ("auto", "none", *offered):
            able = " or ".join(name for name, what in OFFLOADS.items() if self.offload in what)
            raise ValueError(
                f"offload: backend {self.name} cannot move '{self.offload}' to the host's memory. Use {able}"
            )
        return self
