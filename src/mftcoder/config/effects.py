"""Fields that a config sets although they have no effect in it, such as adapter.lora_rank in full fine-tuning.

Only values other than the default count: a run folder's config.yaml holds every field. Combinations that contradict each other are
refused by the schema and by the backends.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mftcoder.config.data import TaskConfig
from mftcoder.config.schema import RunConfig
from mftcoder.config.section import Section


@dataclass(frozen=True)
class Run:
    """A config, and where it runs."""

    config: RunConfig
    ranks: int = 1
    on_gpu: bool = False

    @property
    def backend(self) -> str:
        """The name of the backend; `auto` if the memory plan can still choose one."""
        name = self.config.backend.name
        if name != "auto" or (self.on_gpu and self.ranks == 1):
            return name
        return "local" if self.ranks == 1 else "ddp"


def _text(value: Any) -> str:
    """The value as in YAML."""
    return json.dumps(value, ensure_ascii=False, default=str).strip('"')


Rule = tuple[Callable[[Run], Any], str]  # when a field has no effect, and why


def _unless(section: str, field: str, *values: Any) -> Rule:
    """No effect unless this other field has one of these values."""

    def applies(run: Run) -> bool:
        return getattr(getattr(run.config, section), field) not in values

    wanted = " or ".join(map(_text, values))
    return applies, f"it needs {section}.{field}: {wanted}"


def _if_set(section: str, field: str, value: Any) -> Rule:
    """No effect if this other field has this value."""
    return (lambda run: getattr(getattr(run.config, section), field) == value), f"{section}.{field} is {value}"


def _if_all(holds: Callable[[TaskConfig], Any], why: str) -> Rule:
    """No effect if this holds for every task."""
    return (lambda run: all(map(holds, run.config.tasks))), why


_FULL = _if_set("adapter", "type", "full")
_ONE_TASK: Rule = (lambda run: len(run.config.tasks) == 1, "there is one task")
_DOCUMENTS = _if_all(lambda task: task.kind.name == "pretrain", "all tasks are of kind pretrain")
_NO_SFT = _if_all(lambda task: task.kind.name != "sft", "no task is of kind sft")
_NEVER_CUT = _if_all(
    lambda task: task.kind.name in ("pretrain", "grpo"),
    "documents are always split, and an answer of kind grpo is refused if it does not fit",
)

RULES: tuple[tuple[str, str, Callable[[Run], Any], str], ...] = (
    (
        "model",
        "modules_to_not_convert",
        lambda run: run.config.model.quantization is None and run.config.train.fp8_recipe is None,
        "it needs model.quantization or train.fp8_recipe",
    ),
    (
        "adapter",
        "lora_rank lora_alpha lora_dropout lora_target train_embeddings use_rslora use_dora peft_forward",
        *_FULL,
    ),
    (
        "adapter",
        "peft_forward",
        lambda run: run.config.adapter.lora_dropout or run.config.adapter.use_dora,
        "layers with dropout or DoRA always use it",
    ),
    ("tasks", "weight", *_ONE_TASK),
    ("tasks", "sampling_weight", *_unless("data", "sampling", "weights")),
    ("data", "chat_template", *_DOCUMENTS),
    ("data", "chat_template", lambda run: run.config.data.role_markers, "data.role_markers replace it"),
    ("data", "role_markers", *_DOCUMENTS),
    ("data", "train_on", *_NO_SFT),
    ("data", "over_length", *_NEVER_CUT),
    ("data", "padding", *_unless("data", "packing", "none")),
    ("data", "val_size", *_if_all(lambda task: task.validation, "every task has validation files of its own")),
    (
        "data",
        "max_val_samples",
        lambda run: not run.config.data.val_size and not any(task.validation for task in run.config.tasks),
        "there is no validation data",
    ),
    ("data", "sampling_temperature", *_unless("data", "sampling", "temperature")),
    ("loss", "absent_task", *_unless("loss", "normalization", "task_token", "task_sample")),
    ("loss", "focal", lambda run: not run.config.loss.focal_gamma, "loss.focal_gamma is 0"),
    ("loss", "focal_gamma focal_detach", *_unless("loss", "focal", "sample", "task")),
    ("balancer", "name", *_ONE_TASK),
    ("train", "num_train_epochs", lambda run: run.config.train.max_steps, "train.max_steps is given"),
    (
        "train",
        "per_device_eval_batch_size",
        lambda run: run.config.train.eval_strategy == "no" and run.config.balancer.name == "uniform",
        "train.eval_strategy is no",
    ),
    ("train", "min_lr", *_if_set("train", "lr_scheduler_type", "constant")),
    ("train", "sync_each_batch", *_if_set("train", "gradient_accumulation_steps", 1)),
    ("train", "eval_steps", *_unless("train", "eval_strategy", "steps")),
    ("train", "save_steps", *_unless("train", "save_strategy", "steps", "steps_and_epoch")),
    ("train", "save_format", lambda run: run.backend not in ("fsdp2", "auto"), "only backend fsdp2 writes shards"),
    ("train", "metric_for_best_model", *_if_set("train", "eval_strategy", "no")),
    ("train", "logging_dir", lambda run: not run.config.train.report_to, "train.report_to names no logger"),
    ("backend", "init_timeout_seconds timeout_seconds", lambda run: run.ranks == 1, "there is one process"),
    ("backend", "shard_group_size", lambda run: run.backend not in ("fsdp2", "auto"), "it is for backend fsdp2"),
    (
        "backend",
        "reduce_dtype",
        lambda run: run.backend in ("local", "ddp"),
        "backends local and ddp sum gradients in float32; it is for fsdp2 and deepspeed",
    ),
)
"""A section and its fields, and when a value other than the default has no effect. Options of balancers and kinds stand with these."""


def fields_without_effect(run: Run) -> list[str]:
    """A line `field: value has no effect: why` for each field that the config sets in vain."""
    config = run.config
    parts: list[tuple[str, Section, str, str]] = []
    for section, names, applies, why in RULES:
        if applies(run):
            parts += [(place, part, name, why) for name in names.split() for place, part in _parts(config, section)]
    for place, part in (
        ("balancer", config.balancer),
        *((f"tasks.{task.name}.kind", task.kind) for task in config.tasks),
    ):
        parts += [(place, part, name, why) for name, why in part.options_without_effect.items()]
    return [
        f"{place}.{name}: {_text(getattr(part, name))} has no effect: {why}"
        for place, part, name, why in parts
        if getattr(part, name)
        != ("uniform" if (place, name) == ("balancer", "name") else type(part).model_fields[name].default)
    ]


def _parts(config: RunConfig, section: str) -> list[tuple[str, Section]]:
    """The section with its name; for `tasks` each task."""
    if section == "tasks":
        return [(f"tasks.{task.name}", task) for task in config.tasks]
    return [(section, getattr(config, section))]
