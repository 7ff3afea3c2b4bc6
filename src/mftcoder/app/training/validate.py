"""`mft validate`: check everything that can be checked without training, report all problems together, and print the plan.

Model folder, tokenizer and adapter targets are checked without loading weights. The data is tokenized and kept for the training, so
every data error shows here. Trains nothing, and writes nothing into the run folder.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mftcoder.app.training.plan_choice import warning_of
from mftcoder.balancing.base import build_balancer
from mftcoder.config.effects import Run, fields_without_effect
from mftcoder.config.kinds import GrpoKind, KtoKind, PreferenceKind, PretrainKind
from mftcoder.config.schema import IN_BITS, BackendConfig, RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import Store
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.errors import ConfigError, MftError
from mftcoder.kernels.limits import device_limits, model_limits
from mftcoder.kernels.linear.fp8 import GPUS_WITH_FP8, lack_of_fp8
from mftcoder.log import OnProgress, no_progress, warn
from mftcoder.models.gpu_memory.plans import (
    USABLE,
    MemoryPlan,
    device_memory,
    fastest_that_fits,
    gib,
    host_memory,
    memory_plans,
    next_card,
    plan_model,
)
from mftcoder.models.layers.fp8 import check_recipe
from mftcoder.models.layers.quantize import IN_FP8
from mftcoder.models.loading.load import DTYPES
from mftcoder.models.loading.resolve import ParameterCount, ResolvedModel, resolve_model
from mftcoder.models.loading.suitability import check_suitability, check_texts
from mftcoder.registry import BACKENDS
from mftcoder.reporting.terminal import print_table_with_names
from mftcoder.training.backends.base import Backend
from mftcoder.training.backends.process_group import launched_processes, pick_device
from mftcoder.training.facts import check_metric, check_schedule, label_warnings, run_facts
from mftcoder.training.optimizer import decay_steps, warmup_steps

Checked = TypeVar("Checked")


@dataclass(frozen=True)
class Card:
    """The device that a plan is for; `count` equal ones run together."""

    name: str
    device: torch.device
    memory: float  # bytes that a run may use
    count: int = 1
    is_here: bool = False

    @classmethod
    def of(cls, text: str) -> "Card":
        """`24GB`, `8x80GB`: the size on the label of a GPU, and how many. ConfigError for anything else."""
        found = re.fullmatch(
            r"(?:(\d{1,5})\s*x\s*)?(\d{1,4}(?:\.\d{1,3})?)\s*(?:G|GB|GiB)?", text.strip(), re.IGNORECASE
        )
        count, size = (int(found[1] or 1), float(found[2])) if found else (0, 0.0)
        if not count or not size:
            raise ConfigError(f"--gpu {text}: write the memory of a GPU, such as 24GB, or of several, such as 8x80GB.")
        return cls(f"a GPU of {size:g} GB", torch.device("cuda"), size * USABLE * 2**30, count)

    @classmethod
    def here(cls, device: torch.device) -> "Card":
        """The device of this process."""
        return cls(device.type, device, device_memory(device), launched_processes(), is_here=True)


def validate(config: RunConfig, *, gpu: str | None = None, on_progress: OnProgress = no_progress) -> None:
    """Print the plan, for this machine or for `gpu` ("24GB", "8x80GB"); MftError with every problem of every part."""
    problems: list[str] = []

    def check(part: Callable[[], Checked]) -> Checked | None:
        try:
            return part()
        except MftError as error:
            problems.extend(error.problems)
            return None

    card = check(lambda: Card.of(gpu) if gpu else Card.here(pick_device(config.backend.device)))
    backend = check(lambda: _checked_backend(config)) if card else None
    check(lambda: check_recipe(config.train.fp8_recipe))
    model = check(lambda: resolve_model(config.model))
    warnings = check(lambda: check_suitability(model, config)) if model else None
    planned = check(lambda: plan_model(config, model.config)) if model else None
    check(lambda: _check_output(config.output_path))
    store = check(lambda: prepare_store(config, on_progress=on_progress)) if model else None
    if store:
        check(lambda: _check_balancer(config, store))
        long = check(lambda: check_texts(model, config, *store.longest_text())) if model else None
        warnings = [*(warnings or []), *([long] if long else []), *label_warnings(config, store)]
        check(lambda: check_schedule(config, TrainLoader(store, config).total_steps))
        check(lambda: check_metric(config, ValidationLoader(store, config)))
    if problems or card is None or model is None or planned is None or store is None:
        raise MftError(*problems)
    _print_plan(config, model, planned.count, store, card)
    on_host = host_memory(card.count) if card.is_here else None
    plans = memory_plans(config, planned, card.device.type, card.count, on_host)
    _print_memory(config, plans, card, planned.by_formula)
    dtype = DTYPES[config.model.dtype]
    limits = (
        [*device_limits(card.device, dtype), *model_limits(card.device, model.config, dtype)] if card.is_here else []
    )
    as_run = config.model_copy(update={"backend": backend})
    idle = fields_without_effect(Run(as_run, card.count, card.device.type == "cuda"))
    for line in (*idle, *(warnings or ()), *map(str, limits)):
        warn(line)
    Console().print("Everything that can be checked without training is in order.")


def _checked_backend(config: RunConfig) -> BackendConfig:
    """The backend section that a run here would use; `auto` can be what accelerate's flags say. MftError if it cannot run."""
    backend: Backend = BACKENDS.load(config.backend.name)(config.backend)
    backend.check(config)
    return backend.config


def _check_output(folder: Path) -> None:
    """MftError if the first existing folder above the run folder is not writable."""
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise MftError(f"output_dir: {existing}: cannot be written. Choose another folder.")


def _check_balancer(config: RunConfig, store: Store) -> None:
    """ConfigError if a task lacks what the method measures."""
    facts = run_facts(config, TrainLoader(store, config), ValidationLoader(store, config))
    build_balancer(config.balancer, facts, config.task_names)


def _print_plan(config: RunConfig, model: ResolvedModel, count: ParameterCount, store: Store, card: Card) -> None:
    loader = TrainLoader(store, config, rank=0, world_size=1)
    train = config.train
    share = 100 * count.trainable / count.total
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    table = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    for name, value in (
        ("model", _model_line(config, model, count)),
        ("products", _products_line(config, card)),
        ("trained", f"{config.adapter.type}: {count.trainable / 1e6:,.2f} M weights ({share:.2f}%)"),
        ("data", _data_line(store)),
        *(
            ("kinds" if not number else "", line)
            for number, line in enumerate(kind_lines(config, store, card.device.type))
        ),
        ("steps", f"{loader.total_steps:,} of {rows} rows; an epoch is {loader.steps_per_epoch:,.1f} steps"),
        ("schedule", _schedule_line(config, loader.total_steps)),
        ("loss", f"{config.loss.normalization}, balancer {config.balancer.name}"),
        ("run folder", config.output_dir),
    ):
        table.add_row(f"[bold]{name}", escape(value))
    Console().print(table)


def _print_memory(config: RunConfig, plans: Sequence[MemoryPlan], card: Card, by_formula: str) -> None:
    """Print how much memory each plan takes, which one a run would choose, what faster ones lack, and what a larger GPU would allow."""
    on_gpu = card.device.type == "cuda"
    plans = plans if on_gpu else [plan for plan in plans if not warning_of(plan.config, config)]
    fitting = fastest_that_fits(plans, card.memory)
    usable = [index for index, plan in enumerate(plans) if not plan.lack]
    chosen = 0 if not on_gpu else usable[-1] if fitting is None else fitting  # a CPU recomputes only what it is told to
    sizes = [{"in all": plan.memory.total, **plan.memory.parts()} for plan in plans]
    shown = [part for part in sizes[0] if any(size[part] for size in sizes)]
    rows = [
        (">" if index == chosen else "", str(plan), *(f"{size[part] / 2**30:.2f}" for part in shown))
        for index, (plan, size) in enumerate(zip(plans, sizes, strict=True))
    ]
    console = Console()
    console.print(f"memory, estimated in GiB ({card.name} has {gib(card.memory)})", highlight=False, style="italic")
    print_table_with_names(console, ("", "plan", *shown), rows, "plan", numbers=shown)
    hindered = [plan for index, plan in enumerate(plans) if plan.lack and (fitting is None or index < fitting)]
    for line in filter(None, (by_formula, *(f"not '{plan}': {plan.lack}" for plan in hindered))):
        console.print(f"[yellow]{escape(line)}", highlight=False, soft_wrap=True)
    if warning := warning_of(plans[chosen].config, config):
        console.print(f"[yellow]{escape(warning)}.", highlight=False, soft_wrap=True)
    if plans[chosen].memory.total > card.memory:
        console.print(
            "[yellow]This is more than the device has. Try train.gradient_checkpointing=true, train.optim=adamw_8bit, "
            "backend.name=fsdp2 backend.offload=all, a smaller "
            "train.per_device_train_batch_size with more gradient_accumulation_steps, or a smaller data.max_length."
        )
    if on_gpu and (larger := next_card(plans, card.memory)):
        size, plan = larger
        console.print(f"A GPU of {size} GB would have room to {plan}.", highlight=False)


def _model_line(config: RunConfig, model: ResolvedModel, count: ParameterCount) -> str:
    line = f"{model.name}: {count.total / 1e6:,.1f} M weights, {config.model.dtype}"
    held = config.model.quantization
    return line if held is None else f"{line}, {count.quantizable / 1e6:,.1f} M of them held in {IN_BITS[held]}"


def _products_line(config: RunConfig, card: Card) -> str:
    """The dtype of the matrix products, and whether the device supports it."""
    recipe = config.train.fp8_recipe
    if config.model.quantization not in IN_FP8 and recipe is None:
        return config.model.dtype
    line = f"fp8 (torchao, {recipe})" if recipe else "fp8 (e4m3)"
    if not card.is_here:
        return f"{line} on a GPU of {GPUS_WITH_FP8}; emulated on others, at no gain in speed"
    lack = lack_of_fp8(card.device)
    return line if lack is None else f"{line}, emulated: the same numbers, no gain in speed. {lack}"


def _data_line(store: Store) -> str:
    samples = [len(store.train(task)) for task in range(len(store.tasks))]
    held_out = [len(store.validation(task)) for task in range(len(store.tasks))]
    tasks = ", ".join(f"{name} {n:,} + {v:,}" for name, n, v in zip(store.tasks, samples, held_out, strict=True))
    return f"{sum(samples):,} samples to train and {sum(held_out):,} to validate ({tasks})"


def kind_lines(config: RunConfig, store: Store, device_type: str) -> list[str]:
    """For each task its kind, what the kind computes beside one pass, and what that takes in memory."""
    lines = (_kind_line(config, number, store, device_type) for number in range(len(config.tasks)))
    return [f"{task.name}: {line}" for task, line in zip(config.tasks, lines, strict=True)]


def _kind_line(config: RunConfig, number: int, store: Store, device_type: str) -> str:
    kind = config.tasks[number].kind
    if isinstance(kind, PretrainKind):
        return f"pretrain, documents {kind.documents}"
    if isinstance(kind, GrpoKind):
        passes = sum([kind.epsilon is not None, kind.beta > 0])
        extra = [f"{passes} forward passes over all answers before the first step"] if passes else []
        return "; ".join(["grpo, one more product with the head", *extra]) + ". The memory below covers it"
    if not isinstance(kind, PreferenceKind):
        return kind.name
    pairs = len(store.train(number)) + len(store.validation(number))
    attention = config.model.attn_implementation
    by_segments = attention == "segments" or (attention == "auto" and device_type == "cpu")
    whole = config.train.torch_compile is True or config.backend.context_parallel_size > 1
    prompts = (
        "the two texts of a pair share one run of their prompt"
        if by_segments and not whole
        else "each text runs its prompt"
    )
    extra = [prompts, "one more product with the head"]
    if isinstance(kind, KtoKind):
        extra.append("one more forward pass a step, without gradients")
    if kind.needs_reference:
        by = (
            "the model before its first step"
            if config.adapter.type == "full"
            else "the model with its LoRA weights off"
        )
        extra.append(f"a reference by {by}, once: no second model, {16 * pairs / 1024:,.0f} KiB for {pairs:,} records")
    return f"{kind.name}, {'; '.join(extra)}. The memory below covers it"


def _schedule_line(config: RunConfig, total_steps: int) -> str:
    train = config.train
    warmup = warmup_steps(total_steps, train)
    stable = train.lr_scheduler_type == "warmup_stable_decay"
    decay = f", {decay_steps(total_steps, train)} of decay" if stable else ""
    return (
        f"{train.lr_scheduler_type} from {train.learning_rate:g} to {train.min_lr:g}, {warmup} steps of warm-up{decay}"
    )
