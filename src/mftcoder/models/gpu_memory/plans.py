"""Estimate the memory of a run, and find the fastest memory plan that fits a device.

The plans go from the fastest to the smallest: recompute nothing, norms and SwiGLU, a fraction of the layers, all layers; then moments in
8 bits, then the host's memory. If gradient shards can be summed over ranks once per step or in each micro-batch, each recomputation comes
with both. `activations.py` counts activations on the model's own code; the rest is arithmetic. Two numbers are assumptions that were not
measured on a GPU: the memory of CUDA itself and what the allocator cannot use (RUNTIME, FRAGMENTATION).
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from mftcoder.config.backend import OFFLOADS
from mftcoder.config.schema import RunConfig
from mftcoder.errors import reason
from mftcoder.kernels.cross_entropy import CHUNK_BYTES
from mftcoder.models.gpu_memory.activations import Activations, count_activations
from mftcoder.models.gpu_memory.recompute import Recomputation
from mftcoder.models.layers.quantize import BYTES_PER_WEIGHT
from mftcoder.models.loading.resolve import ParameterCount, count_weights, planned_model

BYTES = {"bfloat16": 2, "float32": 4}
RUNTIME = 1 << 30  # the CUDA context, workspaces of libraries, compiled kernels
FRAGMENTATION = 0.04  # fraction of the rest that the allocator holds and cannot use
USABLE = 0.98  # fraction of a GPU's nominal memory that torch can use
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180, 288)
"""Memory sizes of GPUs on the market, in GB."""
SETTINGS = (False, "selective", 0.25, 0.5, 0.75, True)
"""The values that `train.gradient_checkpointing: auto` tries, the fastest first."""
MOVED = ("optimizer", "all")
"""Values of backend.offload with masters and moments in the host's memory."""
CHOSEN = (
    ("train", "gradient_checkpointing"),
    ("train", "sync_each_batch"),
    ("train", "optim"),
    ("backend", "name"),
    ("backend", "offload"),
)
"""The fields in which plans differ."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes that training takes on one device."""

    weights: int
    masters: int  # float32 copies of trained low-precision weights
    moments: int
    gradients: int
    activations: int  # of one micro-batch, kept for the backward pass
    working: int  # of one layer during its backward pass
    head: int  # logits of one chunk, hidden states of trained tokens, the gradients of both, and that of a trained head
    runtime: int
    host: int = 0  # bytes in the host's memory instead, or for updates there
    accumulates: bool = (
        False  # whether gradients of earlier micro-batches are in memory together with later activations
    )

    @property
    def total(self) -> int:
        """The peak. The gradients of a single micro-batch grow while its activations shrink."""
        passing = self.activations + self.working + self.head
        peak = passing + self.gradients if self.accumulates else max(passing, self.gradients)
        held = self.weights + self.masters + self.moments + peak
        return round(held * (1 + FRAGMENTATION)) + self.runtime if self.runtime else held

    def parts(self) -> dict[str, int]:
        """Name -> bytes, for display: those of the device, and those of the host."""
        return {
            "weights": self.weights,
            "masters": self.masters,
            "moments": self.moments,
            "gradients": self.gradients,
            "activations": self.activations,
            "layer": self.working,
            "head": self.head,
            "CUDA": self.runtime,
            "host": self.host,
        }


@dataclass(frozen=True)
class PlannedModel:
    """The properties of a model for the estimate. `by_formula` is the reason if its activations could not be counted."""

    count: ParameterCount
    activations: Activations
    vocabulary: int
    hidden: int
    by_formula: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """A memory plan: a config without open choices, its memory, and what this machine lacks for it (empty: nothing)."""

    config: RunConfig
    memory: MemoryEstimate
    lack: str = ""

    def __str__(self) -> str:
        return in_words(self.config)


def in_words(config: RunConfig) -> str:
    """What a config without open choices does to save memory, in words."""
    words = [str(Recomputation.of(config.train.gradient_checkpointing))]
    if _gradients_can_wait(config) and config.train.sync_each_batch != "auto":
        words += [f"sum gradients {'in each micro-batch' if config.train.sync_each_batch else 'once a step'}"]
    words += ["moments in 8 bits"] if config.train.optim == "adamw_8bit" else []
    offload = {"optimizer": "masters and moments", "all": "weights and moments"}.get(config.backend.offload)
    return ", ".join([*words, f"{offload} in the host's memory"] if offload else words)


def plan_model(config: RunConfig, model_config: Any) -> PlannedModel:
    """Build the model of the config on the meta device, and count its weights and activations."""
    model, *counts = planned_model(
        model_config,
        config.adapter,
        trust_remote_code=config.model.trust_remote_code,
        quantization=config.model.quantization,
        kept=config.model.modules_to_not_convert if config.model.quantization else (),
    )
    text = model_config.get_text_config()
    activations, by_formula = _activations(config, model, text)
    return PlannedModel(
        count=count_weights(model, *counts),
        activations=activations,
        vocabulary=int(text.vocab_size),
        hidden=int(getattr(text, "hidden_size", 0)),
        by_formula=by_formula,
    )


def _activations(config: RunConfig, model: Any, text_config: Any) -> tuple[Activations, str]:
    """Count activations on the model's code; if that code needs numbers, use a formula and return the reason."""
    rows, length = config.train.per_device_train_batch_size, config.data.max_length
    length = -(-length // config.backend.context_parallel_size)
    width = BYTES[config.model.dtype]
    try:
        typed = model.bfloat16() if width == 2 else model.float()
        compiled = config.train.torch_compile is True  # auto may not compile
        return count_activations(typed, rows, length, compiled=compiled), ""
    except Exception as error:  # the code of many authors, on a device that it was not written for
        why = (
            "activations come from a formula over the model's sizes, which may be far off, because its code does not run on shapes: "
            f"{type(error).__name__}: {reason(error)}"
        )
        return activations_by_shape(text_config, rows * length * width), why


def activations_by_shape(model_config: Any, scale: int) -> Activations:
    """`scale` (tokens times bytes per number) times the numbers that a layer with a gated feed-forward part keeps."""
    hidden = int(getattr(model_config, "hidden_size", 0))
    heads = int(getattr(model_config, "num_attention_heads", 1) or 1)
    groups = int(getattr(model_config, "num_key_value_heads", heads) or heads)
    inner = int(getattr(model_config, "moe_intermediate_size", 0) or getattr(model_config, "intermediate_size", 0) or 0)
    inner = (inner or 4 * hidden) * int(getattr(model_config, "num_experts_per_tok", 1) or 1)
    layers = max(int(getattr(model_config, "num_hidden_layers", 0)), 1)
    products = 5 * hidden + 2 * hidden * groups // heads + 2 * inner  # in, q, k, v, attention, out, gate, up, down
    everything = products + 7 * hidden + 2 * inner  # norms in float32 and bfloat16, SwiGLU's two factors
    return Activations(everything * layers * scale, products * layers * scale, hidden * layers * scale, layers)


def estimate_memory(config: RunConfig, model: PlannedModel, device_type: str, ranks: int = 1) -> MemoryEstimate:
    """The bytes that training takes on each of `ranks` devices. `config` has no `auto` that affects memory."""
    train, count = config.train, model.count
    width = BYTES[config.model.dtype]
    shards, weights = _shards(config, model, ranks)
    accumulates = train.gradient_accumulation_steps > 1
    exact = accumulates or ranks > 1  # summed in float32
    as_made = width if train.optim != "adamw_8bit" or width == 4 else width + 4  # bitsandbytes gets float32 copies
    offload = config.backend.offload
    gathers = offload == "all" and config.backend.name == "fsdp2"  # layer by layer, there and back
    masters = _master_bytes(config) * count.trainable // shards
    gradients = _gradients_in_passing(model) if gathers else count.trainable * (4 if exact else as_made) // shards
    moments = (2 if train.optim == "adamw_8bit" else 8) * count.trainable // shards
    return MemoryEstimate(
        weights=weights,
        masters=0 if offload in MOVED else masters,
        moments=0 if offload in MOVED else moments,
        gradients=gradients + _waiting_gradients(config, count),
        activations=model.activations.kept(Recomputation.of(train.gradient_checkpointing)),
        working=model.activations.one_layer,
        head=_head_bytes(config, model, device_type),
        runtime=RUNTIME if device_type == "cuda" else 0,
        host=_host_bytes(config, count, shards, masters + moments),
        accumulates=accumulates,
    )


def _host_bytes(config: RunConfig, count: ParameterCount, shards: int, optimizer: int) -> int:
    """The host's bytes of one rank: what is offloaded, and the float32 gradients for the updates."""
    offload = config.backend.offload
    if offload not in MOVED:
        return 0
    frozen = weight_bytes(config, count) - count.trainable * BYTES[config.model.dtype]
    trained = count.trainable * (4 if config.backend.name == "fsdp2" else BYTES[config.model.dtype])
    return optimizer + (4 * count.trainable + (trained + frozen if offload == "all" else 0)) // shards


def _master_bytes(config: RunConfig) -> int:
    """Bytes per trained weight of its float32 master; float32 weights and the shards of fsdp2 are their own masters."""
    own = config.model.dtype == "float32" or config.backend.name == "fsdp2"
    return 0 if own or config.train.master_weights == "stochastic_rounding" else 4


def _waiting_gradients(config: RunConfig, count: ParameterCount) -> int:
    """The float32 gradients of the whole model on each rank, if they are summed over ranks once per step."""
    return 4 * count.trainable if _gradients_can_wait(config) and config.train.sync_each_batch is False else 0


def _gradients_can_wait(config: RunConfig) -> bool:
    """Whether gradients may be summed over ranks once per step, and are then accumulated in float32."""
    backend, several = config.backend, config.train.gradient_accumulation_steps > 1
    return several and backend.name == "fsdp2" and backend.reduce_dtype == "float32"


def _gradients_in_passing(model: PlannedModel) -> int:
    """Gradients on their way to the host, in both dtypes: of one layer and of the weights outside of layers."""
    count = model.count
    outside = count.total - count.linear if count.trainable == count.total else 0
    return (2 + 4) * (outside + (count.trainable - outside) // model.activations.layers)


def _shards(config: RunConfig, model: PlannedModel, ranks: int) -> tuple[int, int]:
    """`(number of shards of gradients, masters and moments, bytes of weights on each device)`."""
    backend, count = config.backend, model.count
    whole = weight_bytes(config, count)
    if backend.name == "deepspeed_zero2":
        return ranks, whole
    if backend.name not in ("fsdp2", "deepspeed_zero3"):
        return 1, whole
    shards = backend.shard_group_size or ranks
    width = BYTES[config.model.dtype]
    outside = (count.total - count.linear) * width  # embedding and head, gathered for the whole pass
    outside += 2 * (whole - outside) // model.activations.layers  # the layer that runs and the one that is prefetched
    if backend.name == "fsdp2":
        whole += count.trainable * (4 - width)  # trained shards are their own masters
    return shards, outside + (0 if backend.offload == "all" else whole // shards)


def _head_bytes(config: RunConfig, model: PlannedModel, device_type: str) -> int:
    width = BYTES[config.model.dtype]
    tokens = config.train.per_device_train_batch_size * config.data.max_length // config.backend.context_parallel_size
    chunk = min(tokens, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]) // (4 * model.vocabulary))
    logits = chunk * model.vocabulary * (width if device_type == "cuda" else width + 4)
    trained = model.vocabulary * model.hidden * (4 + width) if config.adapter.type == "full" else 0
    return logits + 2 * tokens * model.hidden * width + trained


def weight_bytes(config: RunConfig, count: ParameterCount) -> int:
    """Bytes of the weights: those that model.quantization covers in its bits, the rest in model.dtype."""
    width, quantization = BYTES[config.model.dtype], config.model.quantization
    if quantization is None:
        return count.total * width
    return (count.total - count.quantizable) * width + round(count.quantizable * BYTES_PER_WEIGHT[quantization])


def memory_plans(
    config: RunConfig, model: PlannedModel, device_type: str, ranks: int = 1, host_memory: float | None = None
) -> list[MemoryPlan]:
    """The memory plans, the fastest first, each smaller than the one before; only one if the config has no open choice.

    `host_memory` is the number of bytes for each rank in the host's memory; None if it is unknown.
    """
    found: list[MemoryPlan] = []
    for choice in choices(config, ranks):
        memory = estimate_memory(choice, model, device_type, ranks)
        if not found or memory.total < found[-1].memory.total:
            found.append(MemoryPlan(choice, memory, lack_of(choice, memory.host, host_memory)))
    return found


def lack_of(choice: RunConfig, host: int = 0, host_memory: float | None = None) -> str:
    """What this machine lacks for a choice of `auto` with `host` bytes in the host's memory; empty if nothing."""
    if choice.train.optim == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install 'mftcoder[qlora]'"
    if host_memory is not None and host > host_memory:
        return f"it needs {gib(host)} of the host's memory, but only {gib(host_memory)} are free"
    return ""


def choices(config: RunConfig, ranks: int = 1) -> list[RunConfig]:
    """The configs that `auto` may become, the fastest first. The last ones use 8-bit moments or the host's memory."""
    train, backend = config.train, config.backend
    plain = _with(
        config,
        train={"optim": "adamw" if train.optim == "auto" else train.optim},
        backend={"offload": "none" if backend.offload == "auto" else backend.offload},
    )
    # DeepSpeed gathers weights inside a layer; it is not verified that a partial recomputation repeats that correctly.
    offered = (False, True) if backend.name.startswith("deepspeed") else SETTINGS
    settings = offered if train.gradient_checkpointing == "auto" else (train.gradient_checkpointing,)
    waits = train.sync_each_batch == "auto" and _gradients_can_wait(config)
    found = [
        _with(plain, train={"gradient_checkpointing": setting, "sync_each_batch": each})
        for setting in settings
        for each in ((False, True) if waits else (train.sync_each_batch,))
    ]
    least = found[-1]
    if train.optim == "auto" and train.master_weights == "float32" and backend.name in ("auto", "local", "ddp"):
        found.append(_with(least, train={"optim": "adamw_8bit"}))
    if backend.offload == "auto" and least.train.optim == "adamw":
        found += [_with(least, backend=moved) for moved in _moved_to_host(config, ranks)]
    return found


def _with(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """The config with these fields of these sections."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def _moved_to_host(config: RunConfig, ranks: int) -> list[dict[str, Any]]:
    """Changes of the backend section that offload: those of its backend; for `auto` with one process, fsdp2."""
    name = config.backend.name
    if config.model.quantization:
        return []  # packed weights were not shown to come back from there as they were
    if name != "auto":
        return [{"offload": offload} for offload in OFFLOADS.get(name, ())]
    train = config.train
    refused = (
        train.torch_compile is True
        or train.fp8_recipe
        or train.master_weights != "float32"
        or config.balancer.reads_gradients
    )
    return [] if refused or ranks > 1 else [{"name": "fsdp2", "offload": "all"}]


def not_faster_than(options: Sequence[RunConfig], begun: dict[str, Any]) -> list[RunConfig]:
    """The options from the one that a run began with, by its dumped config `begun`; all options if it is not among them."""
    for index, option in enumerate(options):
        dumped = option.model_dump(mode="json")
        if all(dumped[section][field] == begun.get(section, {}).get(field) for section, field in CHOSEN):
            return list(options[index:])
    return list(options)


def fastest_that_fits(plans: Sequence[MemoryPlan], capacity: float) -> int | None:
    """The index of the first plan that fits and for which this machine lacks nothing; None if there is none."""
    return next((i for i, plan in enumerate(plans) if plan.memory.total <= capacity and not plan.lack), None)


def next_card(plans: Sequence[MemoryPlan], capacity: float) -> tuple[int, MemoryPlan] | None:
    """The smallest larger GPU on which a faster plan fits, and that plan; None if the fastest plan already fits."""
    now = fastest_that_fits(plans, capacity)
    for size in CARDS:
        then = fastest_that_fits(plans, size * USABLE * 2**30)
        if size * USABLE * 2**30 > capacity and then is not None and (now is None or then < now):
            return size, plans[then]
    return None


def device_memory(device: torch.device) -> int:
    """The bytes that a run may use: on a GPU those that are free or held by this process, on a CPU all of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().total)


def host_memory(processes: int) -> float:
    """Free bytes of the host's memory for each of the processes on this machine."""
    return psutil.virtual_memory().available / processes


def gib(size: float) -> str:
    """Bytes as text, in GiB."""
    return f"{size / 2**30:.2f} GiB"
