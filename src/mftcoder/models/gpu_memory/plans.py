"""How much memory a run takes, and the fastest way to train that a device has room for.

Goes in: the run config, a model as shapes, the device's memory. Comes out: bytes a part, and plans from the fastest to the
smallest: recompute nothing, norms and SwiGLU, a share of the layers, all. Activations are counted on the model's own code
(`activations.py`); the rest is arithmetic. Two numbers are assumptions and were not measured on a GPU: what CUDA itself takes
and what the allocator cannot use (RUNTIME, FRAGMENTATION).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

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
    """What the estimate needs to know of a model."""

    count: ParameterCount
    activations: Activations
    vocabulary: int
    hidden: int


@dataclass(frozen=True)
class MemoryPlan:
    """One way to train: a config that leaves no choice open, and what it takes."""

    config: RunConfig
    memory: MemoryEstimate

    def __str__(self) -> str:
        """In words."""
        return in_words(self.config)


def in_words(config: RunConfig) -> str:
    """What a config without open choices does for memory."""
    words = [str(Recomputation.of(config.train.gradient_checkpointing))]
    words += ["moments in 8 bits"] if config.train.optim == "adamw_8bit" else []
    words += ["weights and moments in the host's memory"] if config.backend.offload == "all" else []
    return ", ".join(words)


def plan_model(config: RunConfig, model_config: Any) -> PlannedModel:
    """Build the model of the config as shapes, and count its weights and activations."""
    model, quantizable = planned_model(
        model_config,
        config.adapter,
        trust_remote_code=config.model.trust_remote_code,
        quantization=config.model.quantization,
    )
    text = model_config.get_text_config()
    return PlannedModel(
        count=count_weights(model, quantizable),
        activations=_activations(config, model, text),
        vocabulary=int(text.vocab_size),
        hidden=int(getattr(text, "hidden_size", 0)),
    )


def _activations(config: RunConfig, model: Any, text_config: Any) -> Activations:
    """Counted by running the model's code on shapes; from its config where that code needs numbers."""
    rows, length = config.train.per_device_train_batch_size, config.data.max_length
    length = -(-length // config.backend.context_parallel_size)
    width = BYTES[config.model.dtype]
    try:
        typed = model.bfloat16() if width == 2 else model.float()
        return count_activations(
            typed, rows, length, compiled=config.train.torch_compile is True
        )  # auto may not compile
    except Exception:  # models of many authors, on a device that they were not written for
        return activations_by_shape(text_config, rows * length * width)


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
    shards, weights = _shares(config, count, ranks)
    accumulates = train.gradient_accumulation_steps > 1
    exact = accumulates or ranks > 1  # added up in float32
    on_host = config.backend.offload
    return MemoryEstimate(
        weights=weights,
        masters=_held(_master_bytes(config) * count.trainable // shards, on_host),
        moments=_held((2 if train.optim == "adamw_8bit" else 8) * count.trainable // shards, on_host),
        gradients=count.trainable * (4 if exact else width) // shards,
        activations=model.activations.kept(Recomputation.of(train.gradient_checkpointing)),
        working=model.activations.one_layer,
        head=_head_bytes(config, model, device_type),
        runtime=RUNTIME if device_type == "cuda" else 0,
        accumulates=accumulates,
    )


def _master_bytes(config: RunConfig) -> int:
    """A trained weight's float32 copy; float32 weights and the shares of fsdp2 are their own."""
    own = config.model.dtype == "float32" or config.backend.name == "fsdp2"
    return 0 if own or config.train.master_weights == "stochastic_rounding" else 4


def _held(size: int, offload: str) -> int:
    return size if offload == "none" else 0


def _shares(config: RunConfig, count: ParameterCount, ranks: int) -> tuple[int, int]:
    """`(ranks that share gradients, masters and moments, bytes of weights on each device)`."""
    backend, whole = config.backend, weight_bytes(config, count)
    if backend.name == "deepspeed_zero2":
        return ranks, whole
    if backend.name not in ("fsdp2", "deepspeed_zero3"):
        return 1, whole
    shards = backend.shard_group_size or ranks
    width = BYTES[config.model.dtype]
    outside = (count.total - count.quantizable) * width  # embedding and head, gathered throughout
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


def memory_plans(config: RunConfig, model: PlannedModel, device_type: str, ranks: int = 1) -> list[MemoryPlan]:
    """Ways to train, the fastest first, each smaller than the one before; just one where the config leaves no choice."""
    found: list[MemoryPlan] = []
    for choice in choices(config):
        plan = MemoryPlan(choice, estimate_memory(choice, model, device_type, ranks))
        if not found or plan.memory.total < found[-1].memory.total:
            found.append(plan)
    return found


def choices(config: RunConfig) -> list[RunConfig]:
    """The configs that `auto` may become, the fastest first."""
    if config.train.gradient_checkpointing != "auto":
        return [config]
    # DeepSpeed gathers weights inside a layer, which recomputing parts of it was not shown to repeat rightly.
    settings = (False, True) if config.backend.name.startswith("deepspeed") else SETTINGS
    return [
        config.model_copy(update={"train": config.train.model_copy(update={"gradient_checkpointing": setting})})
        for setting in settings
    ]


def smaller_plans(config: RunConfig, model: PlannedModel, device_type: str, ranks: int = 1) -> list[MemoryPlan]:
    """What a person can still ask for below the last of `memory_plans`. `auto` does not: moments in 8 bits train otherwise, and the
    host's memory is not known to be free.
    """
    least = choices(config)[-1]
    train, backend = least.train, least.backend
    whole = train.optim == "adamw" and train.master_weights == "float32" and backend.offload == "none"
    found = []
    if whole and backend.name in ("auto", "local", "ddp"):
        found.append(least.model_copy(update={"train": train.model_copy(update={"optim": "adamw_8bit"})}))
    refused = train.torch_compile is True or config.balancer.name == "gradnorm" or config.model.quantization == "8bit"
    if whole and backend.name in ("auto", "local", "ddp", "fsdp2") and not refused:
        on_host = backend.model_copy(update={"name": "fsdp2", "offload": "all"})
        found.append(least.model_copy(update={"backend": on_host}))
    return [MemoryPlan(one, estimate_memory(one, model, device_type, ranks)) for one in found]


def fastest_that_fits(plans: Sequence[MemoryPlan], capacity: float) -> int | None:
    """Its index; None if none fits."""
    return next((index for index, plan in enumerate(plans) if plan.memory.total <= capacity), None)


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


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.2f} GiB"
