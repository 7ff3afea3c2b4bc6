"""How much memory a run takes, and the fastest way to train that a device has room for.

Goes in: the run config, a model as shapes, the device's memory. Comes out: bytes a part, and plans from the fastest to the
smallest: recompute nothing, norms and SwiGLU, a share of the layers, all; then moments in 8 bits, then the host's memory. Where shares
of gradients can be summed over ranks once a step or in each micro-batch, each way to recompute comes with both. Activations are
counted on the model's own code (`activations.py`); the rest is arithmetic. Two numbers are assumptions and were not measured
on a GPU: what CUDA itself takes and what the allocator cannot use (RUNTIME, FRAGMENTATION).
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from mftcoder.config.backend import OFFLOADS
from mftcoder.config.schema import RunConfig
from mftcoder.kernels.cross_entropy import CHUNK_BYTES
from mftcoder.models.gpu_memory.activations import Activations, count_activations
from mftcoder.models.gpu_memory.recompute import Recomputation
from mftcoder.models.layers.quantize import BYTES_PER_WEIGHT
from mftcoder.models.loading.resolve import ParameterCount, count_weights, planned_model

BYTES = {"bfloat16": 2, "float32": 4}
RUNTIME = 1 << 30  # the CUDA context, workspaces of libraries, compiled kernels
FRAGMENTATION = 0.04  # of all the rest: what the allocator holds and cannot use
USABLE = 0.98  # of the size on a card's label: what torch is given of it
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180, 288)
"""Sizes in GB that GPUs are sold with."""
SETTINGS = (False, "selective", 0.25, 0.5, 0.75, True)
"""What `train.gradient_checkpointing: auto` tries, the fastest first."""
MOVED = ("optimizer", "all")
"""Values of backend.offload with masters and moments in the host's memory."""
CHOSEN = (
    ("train", "gradient_checkpointing"),
    ("train", "sync_each_batch"),
    ("train", "optim"),
    ("backend", "name"),
    ("backend", "offload"),
)
"""Fields that tell plans apart."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    masters: int  # float32 copies of trained low-precision weights
    moments: int
    gradients: int
    activations: int  # of one micro-batch, kept for the backward pass
    working: int  # one layer's, while its backward pass runs
    head: int  # logits of one chunk, the hidden states of trained tokens and the gradients of both, that of a trained head
    runtime: int
    host: int = 0  # what lies in the host's memory instead, or is updated there
    accumulates: bool = False  # whether gradients of earlier micro-batches lie beside the activations of a later one

    @property
    def total(self) -> int:
        """The most at a time. Gradients of a single micro-batch grow while its activations shrink."""
        passing = self.activations + self.working + self.head
        peak = passing + self.gradients if self.accumulates else max(passing, self.gradients)
        held = self.weights + self.masters + self.moments + peak
        return round(held * (1 + FRAGMENTATION)) + self.runtime if self.runtime else held

    def parts(self) -> dict[str, int]:
        """Name -> bytes, for a person."""
        return {
            "weights": self.weights,
            "float32 masters": self.masters,
            "moments": self.moments,
            "gradients": self.gradients,
            "activations": self.activations,
            "a layer at work": self.working,
            "head": self.head,
            "runtime": self.runtime,
        }


@dataclass(frozen=True)
class PlannedModel:
    """What the estimate needs to know of a model; `by_formula` says why its activations could not be counted, if they were not."""

    count: ParameterCount
    activations: Activations
    vocabulary: int
    hidden: int
    by_formula: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """One way to train: a config that leaves no choice open, what it takes, and what this machine lacks for it (empty: nothing)."""

    config: RunConfig
    memory: MemoryEstimate
    lack: str = ""

    def __str__(self) -> str:
        """In words."""
        return in_words(self.config)


def in_words(config: RunConfig) -> str:
    """What a config without open choices does for memory."""
    words = [str(Recomputation.of(config.train.gradient_checkpointing))]
    if _gradients_can_wait(config) and config.train.sync_each_batch != "auto":
        words += [f"sum gradients {'in each micro-batch' if config.train.sync_each_batch else 'once a step'}"]
    words += ["moments in 8 bits"] if config.train.optim == "adamw_8bit" else []
    offload = {"optimizer": "masters and moments", "all": "weights and moments"}.get(config.backend.offload)
    return ", ".join([*words, f"{offload} in the host's memory"] if offload else words)


def plan_model(config: RunConfig, model_config: Any) -> PlannedModel:
    """Build the model of the config as shapes, and count its weights and activations."""
    model, quantizable = planned_model(
        model_config,
        config.adapter,
        trust_remote_code=config.model.trust_remote_code,
        quantization=config.model.quantization,
    )
    text = model_config.get_text_config()
    activations, by_formula = _activations(config, model, text)
    return PlannedModel(
        count=count_weights(model, quantizable),
        activations=activations,
        vocabulary=int(text.vocab_size),
        hidden=int(getattr(text, "hidden_size", 0)),
        by_formula=by_formula,
    )


def _activations(config: RunConfig, model: Any, text_config: Any) -> tuple[Activations, str]:
    """Counted by running the model's code on shapes; from its config, and with the reason, where that code needs numbers."""
    rows, length = config.train.per_device_train_batch_size, config.data.max_length
    length = -(-length // config.backend.context_parallel_size)
    width = BYTES[config.model.dtype]
    try:
        typed = model.bfloat16() if width == 2 else model.float()
        compiled = config.train.torch_compile is True  # auto may not compile
        return count_activations(typed, rows, length, compiled=compiled), ""
    except Exception as error:  # models of many authors, on a device that they were not written for
        first = (str(error).strip().splitlines() or [""])[0][:200]
        reason = (
            "activations come from a formula over the model's sizes, which may be far off, because its code does not run on shapes: "
            f"{type(error).__name__}: {first}"
        )
        return activations_by_shape(text_config, rows * length * width), reason


def activations_by_shape(model_config: Any, scale: int) -> Activations:
    """`scale` (tokens times bytes of a number) times what a layer with a gated feed-forward keeps, compiled or not."""
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
    """Bytes that training takes on each of `ranks` devices. `config` leaves nothing to `auto` that takes memory."""
    train, count = config.train, model.count
    width = BYTES[config.model.dtype]
    shards, weights = _shares(config, model, ranks)
    accumulates = train.gradient_accumulation_steps > 1
    exact = accumulates or ranks > 1  # added up in float32
    as_made = width if train.optim != "adamw_8bit" or width == 4 else width + 4  # bitsandbytes is given float32 copies
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
    """Of one rank: what it moved there, and the float32 gradients that are updated with."""
    offload = config.backend.offload
    if offload not in MOVED:
        return 0
    frozen = weight_bytes(config, count) - count.trainable * BYTES[config.model.dtype]
    trained = count.trainable * (4 if config.backend.name == "fsdp2" else BYTES[config.model.dtype])
    return optimizer + (4 * count.trainable + (trained + frozen if offload == "all" else 0)) // shards


def _master_bytes(config: RunConfig) -> int:
    """A trained weight's float32 copy; float32 weights and the shares of fsdp2 are their own."""
    own = config.model.dtype == "float32" or config.backend.name == "fsdp2"
    return 0 if own or config.train.master_weights == "stochastic_rounding" else 4


def _waiting_gradients(config: RunConfig, count: ParameterCount) -> int:
    """Those of the whole model on each rank, in float32, if shares are summed over ranks once a step."""
    return 4 * count.trainable if _gradients_can_wait(config) and config.train.sync_each_batch is False else 0


def _gradients_can_wait(config: RunConfig) -> bool:
    """Whether there is a choice when gradients are summed over ranks, and waiting adds up in float32."""
    backend, several = config.backend, config.train.gradient_accumulation_steps > 1
    return several and backend.name == "fsdp2" and backend.reduce_dtype == "float32"


def _gradients_in_passing(model: PlannedModel) -> int:
    """Of one layer and of what is gathered throughout, as they come and in float32, on their way to the host."""
    count = model.count
    outside = count.total - count.quantizable if count.trainable == count.total else 0
    return (2 + 4) * (outside + (count.trainable - outside) // model.activations.layers)


def _shares(config: RunConfig, model: PlannedModel, ranks: int) -> tuple[int, int]:
    """`(ranks that share gradients, masters and moments, bytes of weights on each device)`."""
    backend, count = config.backend, model.count
    whole = weight_bytes(config, count)
    if backend.name == "deepspeed_zero2":
        return ranks, whole
    if backend.name not in ("fsdp2", "deepspeed_zero3"):
        return 1, whole
    shards = backend.shard_group_size or ranks
    width = BYTES[config.model.dtype]
    outside = (count.total - count.quantizable) * width  # embedding and head, gathered throughout
    outside += (
        2 * (whole - outside) // model.activations.layers
    )  # the layer at work and the one that is fetched meanwhile
    if backend.name == "fsdp2":
        whole += count.trainable * (4 - width)  # trained shares are their own masters
    return shards, outside + (0 if backend.offload == "all" else whole // shards)


def _head_bytes(config: RunConfig, model: PlannedModel, device_type: str) -> int:
    width = BYTES[config.model.dtype]
    tokens = config.train.per_device_train_batch_size * config.data.max_length // config.backend.context_parallel_size
    chunk = min(tokens, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]) // (4 * model.vocabulary))
    logits = chunk * model.vocabulary * (width if device_type == "cuda" else width + 4)
    trained = model.vocabulary * model.hidden * (4 + width) if config.adapter.type == "full" else 0
    return logits + 2 * tokens * model.hidden * width + trained


def weight_bytes(config: RunConfig, count: ParameterCount) -> int:
    """Bytes of the weights as they are held: those that model.quantization reaches in its bits, the rest in model.dtype."""
    width, quantization = BYTES[config.model.dtype], config.model.quantization
    if quantization is None:
        return count.total * width
    return (count.total - count.quantizable) * width + round(count.quantizable * BYTES_PER_WEIGHT[quantization])


def memory_plans(
    config: RunConfig, model: PlannedModel, device_type: str, ranks: int = 1, host_memory: float | None = None
) -> list[MemoryPlan]:
    """Ways to train, the fastest first, each smaller than the one before; just one where the config leaves no choice.

    `host_memory`: bytes for each rank in the host's memory; None where they are not known.
    """
    found: list[MemoryPlan] = []
    for choice in choices(config, ranks):
        memory = estimate_memory(choice, model, device_type, ranks)
        if not found or memory.total < found[-1].memory.total:
            found.append(MemoryPlan(choice, memory, lack_of(choice, memory.host, host_memory)))
    return found


def lack_of(choice: RunConfig, host: int = 0, host_memory: float | None = None) -> str:
    """What this machine lacks for a choice of `auto`; empty if nothing. Needs `host` bytes of the host's memory."""
    if choice.train.optim == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install 'mftcoder[qlora]'"
    if host_memory is not None and host > host_memory:
        return f"it needs {gib(host)} of the host's memory, and {gib(host_memory)} are free"
    return ""


def choices(config: RunConfig, ranks: int = 1) -> list[RunConfig]:
    """The configs that `auto` may become, the fastest first. The last ones train with other numbers or move memory to the host."""
    train, backend = config.train, config.backend
    plain = _with(
        config,
        train={"optim": "adamw" if train.optim == "auto" else train.optim},
        backend={"offload": "none" if backend.offload == "auto" else backend.offload},
    )
    # DeepSpeed gathers weights inside a layer, which recomputing parts of it was not shown to repeat rightly.
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
    """What of the backend section changes: as its backend can, or for one process without one by fsdp2."""
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
    """From the option on that a run began with, whose config was dumped to `begun`; all of them if it began with another."""
    for index, option in enumerate(options):
        dumped = option.model_dump(mode="json")
        if all(dumped[section][field] == begun.get(section, {}).get(field) for section, field in CHOSEN):
            return list(options[index:])
    return list(options)


def fastest_that_fits(plans: Sequence[MemoryPlan], capacity: float) -> int | None:
    """The index of the first that has room and that this machine lacks nothing for; None if there is none."""
    return next((i for i, plan in enumerate(plans) if plan.memory.total <= capacity and not plan.lack), None)


def next_card(plans: Sequence[MemoryPlan], capacity: float) -> tuple[int, MemoryPlan] | None:
    """The next larger card on which a faster plan fits, with that plan; None if the fastest fits already."""
    now = fastest_that_fits(plans, capacity)
    for size in CARDS:
        then = fastest_that_fits(plans, size * USABLE * 2**30)
        if size * USABLE * 2**30 > capacity and then is not None and (now is None or then < now):
            return size, plans[then]
    return None


def device_memory(device: torch.device) -> int:
    """Bytes that a run may use: what is free on a GPU or held by this process, all of the machine's for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().total)


def host_memory(processes: int) -> float:
    """Free bytes of the host's memory for each of the processes on this machine."""
    return psutil.virtual_memory().available / processes


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.2f} GiB"
