"""The backend section: which engine carries the training, and what it is told. What each engine does is in training/*_backend.py."""

from typing import Literal

from pydantic import field_validator, model_validator

from mftcoder.config.section import PositiveInt, Section
from mftcoder.registry import BACKENDS, did_you_mean

REFUSED_BACKENDS = {
    "atorch": "atorch 0.2.5 does not run with today's libraries: atorch.auto and atorch.trainer fail on import (safetensors has no "
    "'_tobytes', transformers.utils no 'cached_property'). Its successor DLRover is a launcher, not a backend (docs/scaling.md). Use ddp or fsdp2",
}
"""Engines that were tried and cannot be used: name -> why."""

OFFLOADS = {"fsdp2": ("all",), "deepspeed_zero2": ("optimizer",), "deepspeed_zero3": ("optimizer", "all")}
"""What a backend can keep in the host's memory."""


class BackendConfig(Section):
    """What carries the training: one device, or an engine for many."""

    name: str = "auto"
    """auto is local for one process and ddp for several, or what accelerate's DeepSpeed flags say; local trains on one device: the
    GPU if there is one, else the CPU; ddp holds the whole model on every rank; fsdp2 and deepspeed_zero3 share weights, gradients
    and moments out over the ranks, deepspeed_zero2 gradients and moments."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of each process: the GPU of its number if there is one, else the CPU."""
    init_timeout_seconds: PositiveInt = 3600
    """How long ranks wait for each other at the start, and for rank 0 to prepare the data."""
    timeout_seconds: PositiveInt = 1800
    """How long ranks wait for each other in a step; the run then ends, and says which rank was missing from what."""
    shard_group_size: PositiveInt | None = None
    """fsdp2: how many ranks share one copy of the model (hybrid sharding); default all of them."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """fsdp2 and deepspeed: dtype in which gradients are summed over ranks."""
    context_parallel_size: PositiveInt = 1
    """ddp, fsdp2: how many ranks share each row, every one a slice of its positions, for rows that are too long for one device.
    It divides the processes and the model's attention heads."""
    offload: Literal["auto", "none", "optimizer", "all"] = "auto"
    """fsdp2 and deepspeed: what lies in the host's memory between its uses: nothing; masters and moments, which are then updated there; or
    (fsdp2, deepspeed_zero3) the weights as well. auto: nothing; where GPUs have room for the run no other way, what the backend can move,
    which a line says. One process whose backend is auto becomes fsdp2 for it."""

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
