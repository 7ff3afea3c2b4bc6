"""No field is ignored in silence: each one always has an effect, or a line says when it has none, or the combination is refused."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mftcoder.config.balancer import option_names
from mftcoder.config.effects import Run, fields_without_effect
from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS

SOURCE = Path(__file__).parents[3] / "src" / "mftcoder"
FULL = {"adapter.type": "full"}
DOCUMENTS = {"tasks.a.kind.name": "pretrain"}
DDP: dict[str, Any] = {"backend.name": "ddp"}

IGNORED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("model.modules_to_not_convert", ["mlp"], {}, "it needs model.quantization or train.fp8_recipe"),
    ("adapter.lora_rank", 8, FULL, "adapter.type is full"),
    ("adapter.lora_alpha", 8.0, FULL, "adapter.type is full"),
    ("adapter.lora_dropout", 0.1, FULL, "adapter.type is full"),
    ("adapter.lora_target", ["q_proj"], FULL, "adapter.type is full"),
    ("adapter.train_embeddings", True, FULL, "adapter.type is full"),
    ("adapter.use_rslora", True, FULL, "adapter.type is full"),
    ("adapter.use_dora", True, FULL, "adapter.type is full"),
    ("adapter.peft_forward", True, FULL, "adapter.type is full"),
    ("adapter.peft_forward", True, {"adapter.use_dora": True}, "layers with dropout or DoRA always use it"),
    ("tasks.a.weight", 3.0, {}, "there is one task"),
    ("tasks.a.sampling_weight", 2.0, {}, "it needs data.sampling: weights"),
    ("data.chat_template", "chatml", {"data.role_markers": {"user": "U", "assistant": "A"}}, "data.role_markers replace it"),
    ("data.chat_template", "chatml", DOCUMENTS, "all tasks are of kind pretrain"),
    ("data.role_markers", {"user": "U", "assistant": "A"}, DOCUMENTS, "all tasks are of kind pretrain"),
    ("data.train_on", "all", DOCUMENTS, "no task is of kind sft"),
    ("data.train_on", "all", {"tasks.a.kind.name": "dpo"}, "no task is of kind sft"),
    ("data.over_length", "split", DOCUMENTS, "documents are always split"),
    ("data.over_length", "drop", {"tasks.a.kind.name": "grpo"}, "documents are always split, and an answer of kind grpo is refused"),
    ("tasks.a.kind.fim_spm_rate", 0.7, DOCUMENTS, "kind.fim_rate is 0"),
    ("data.padding", "max_length", {}, "it needs data.packing: none"),
    ("data.val_size", 0.1, {"tasks.a.validation": ["v"]}, "every task has validation files of its own"),
    ("data.max_val_samples", 5, {"data.val_size": 0}, "there is no validation data"),
    ("data.sampling_temperature", 3.0, {}, "it needs data.sampling: temperature"),
    ("loss.absent_task", "keep", {"loss.normalization": "token"}, "it needs loss.normalization: task_token or task_sample"),
    ("loss.focal", "task", {"loss.focal_gamma": 0}, "loss.focal_gamma is 0"),
    ("loss.focal_gamma", 1.0, {}, "it needs loss.focal: sample or task"),
    ("loss.focal_detach", False, {}, "it needs loss.focal: sample or task"),
    ("balancer.name", "coba", {}, "there is one task"),
    ("balancer.val_rows", 9, {"balancer.name": "pace", "balancer.val_share": 0}, "balancer.val_share is 0"),
    ("train.num_train_epochs", 2.0, {"train.max_steps": 5}, "train.max_steps is given"),
    ("train.per_device_eval_batch_size", 2, {"train.eval_strategy": "no"}, "train.eval_strategy is no"),
    ("train.min_lr", 1e-5, {"train.lr_scheduler_type": "constant"}, "train.lr_scheduler_type is constant"),
    ("train.sync_each_batch", True, {"backend.name": "fsdp2"}, "train.gradient_accumulation_steps is 1"),
    ("train.eval_steps", 7, {"train.eval_strategy": "epoch"}, "it needs train.eval_strategy: steps"),
    ("train.save_steps", 7, {"train.save_strategy": "epoch"}, "it needs train.save_strategy: steps or steps_and_epoch"),
    ("train.save_format", "sharded", DDP, "only backend fsdp2 writes shards"),
    ("train.metric_for_best_model", "loss/a", {"train.eval_strategy": "no"}, "train.eval_strategy is no"),
    ("train.logging_dir", "d", {"train.report_to": []}, "train.report_to names no logger"),
    ("backend.init_timeout_seconds", 5, {}, "there is one process"),
    ("backend.timeout_seconds", 5, {}, "there is one process"),
    ("backend.shard_group_size", 2, DDP, "it is for backend fsdp2"),
    ("backend.reduce_dtype", "bfloat16", DDP, "backends local and ddp sum gradients in float32"),
]  # fmt: skip
"""Field, value, the settings that make it idle, and the reason in the line."""

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("model.quantization", {"model.quantization": "fp8", **FULL}),
    ("train.fp8_recipe", {"train.fp8_recipe": "rowwise"}),
    ("train.master_weights", {"train.master_weights": "stochastic_rounding", "train.optim": "adamw_8bit"}),
    ("train.sync_each_batch", {"train.sync_each_batch": True, **DDP}),
    ("train.early_stopping_patience", {"train.early_stopping_patience": 2, "train.eval_strategy": "no"}),
    ("backend.offload", {"backend.offload": "all", **DDP}),
    ("backend.context_parallel_size", {"backend.context_parallel_size": 2, "backend.name": "local"}),
    ("data.sampling", {"data.sampling": "weights"}),
    ("train.decay_steps", {"train.decay_steps": 3}),
    ("balancer.val_batches", {"balancer.name": "dwa", "balancer.val_batches": 2}),
    ("balancer.alpha", {"balancer.name": "coba", "balancer.alpha": 2}),
]
"""A field, and settings that are refused because it would have no effect in them."""

ALWAYS = {
    "model.model_name_or_path", "model.tokenizer_name_or_path", "model.dtype", "model.attn_implementation",
    "model.trust_remote_code", "model.use_safetensors",  # permissions
    "adapter.type",
    "tasks.name", "tasks.path", "tasks.files", "tasks.validation", "tasks.format", "tasks.max_samples",
    "tasks.kind", "data.max_length", "data.packing", "data.on_error",
    "data.max_errors", "data.cache_dir", "data.num_proc",
    "loss.normalization",
    "loss.router_aux_loss_coef",  # depends on the model: tests/unit/models/loading/test_suitability.py
    "train.max_steps", "train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.learning_rate",
    "train.lr_scheduler_type", "train.warmup_steps", "train.optim", "train.weight_decay", "train.adam_beta1",
    "train.adam_beta2", "train.adam_epsilon", "train.max_grad_norm", "train.on_nonfinite", "train.gradient_checkpointing",
    "train.torch_compile", "train.seed", "train.eval_strategy", "train.save_strategy", "train.save_total_limit",
    "train.async_save", "train.resume_from_checkpoint", "train.logging_steps", "train.report_to",
    "train.dataloader_num_workers",
    "train.deterministic",  # on a CPU the promise holds without it
    "backend.name", "backend.device",
    "output_dir",
}  # fmt: skip
"""Fields that every run uses."""


def config_with(settings: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {"model": {"model_name_or_path": "m"}, "tasks": {"a": {"path": "d"}}, "output_dir": "o"}
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        here = raw
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    return parse_config(raw, origin="test")


@pytest.mark.parametrize(("field", "value", "settings", "why"), IGNORED, ids=[case[0] for case in IGNORED])
def test_a_field_that_has_no_effect_is_named_with_the_reason(
    field: str, value: Any, settings: dict[str, Any], why: str
) -> None:
    lines = fields_without_effect(Run(config_with({**settings, field: value})))
    assert [line for line in lines if line.startswith(f"{field}: ") and f"has no effect: {why}" in line], lines


@pytest.mark.parametrize(("field", "settings"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_combination_in_which_a_field_would_have_no_effect_is_refused(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=field.split(".")[-1]):
        config_with(settings)


def test_each_field_is_used_always_or_reported_or_refused() -> None:
    named = {field.replace("tasks.a.", "tasks.") for field, *_ in IGNORED} | {field for field, _ in REFUSED}
    assert named | ALWAYS >= set(fields_of(RunConfig))


def fields_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The fields of all sections; the options of balancers are in the next test."""
    for name in section.model_fields:
        inner = SECTIONS.get(name)
        if inner and not prefix:
            yield from fields_of(inner, f"{name}.")
        else:
            yield f"{prefix}{name}"


SECTIONS: dict[str, type[BaseModel]] = {
    name: type(part[0] if name == "tasks" else part)
    for name, part in config_with({})
    if isinstance(part, BaseModel) or name == "tasks"
}


@pytest.mark.parametrize("method", sorted(BALANCERS.table))
def test_a_method_reads_each_of_its_options(method: str) -> None:
    file = BALANCERS.table[method].partition(":")[0].removeprefix("mftcoder.").replace(".", "/")
    read = attributes(SOURCE / f"{file}.py") | attributes(SOURCE / "balancing" / "base.py")
    assert set(option_names(method)) <= read


def test_each_field_is_read_outside_of_the_config() -> None:
    files = [path for path in SOURCE.rglob("*.py") if "config" not in path.relative_to(SOURCE).parts[:1]]
    read = {"task_names", "output_path"}.union(*map(attributes, files))
    unread = {field.split(".")[-1] for field in fields_of(RunConfig)} - read
    assert not unread


def attributes(path: Path) -> set[str]:
    """The names of all attributes in a file."""
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_a_config_of_defaults_has_no_such_field_on_any_backend() -> None:
    for name in ("auto", "local", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"):
        assert fields_without_effect(Run(config_with({"backend.name": name}))) == []


def test_what_the_memory_plan_may_still_use_is_not_reported() -> None:
    """On one GPU the backend `auto` can become fsdp2, with weights in the host's memory."""
    config = config_with({"train.save_format": "sharded"})
    assert fields_without_effect(Run(config, on_gpu=True)) == []
    assert len(fields_without_effect(Run(config))) == len(fields_without_effect(Run(config, ranks=2, on_gpu=True))) == 1


def test_fsdp2_and_deepspeed_use_what_is_theirs() -> None:
    fields: dict[str, Any] = {"backend.reduce_dtype": "bfloat16", "backend.timeout_seconds": 5}
    sharded = {**fields, "backend.name": "fsdp2", "backend.shard_group_size": 2, "train.save_format": "sharded"}
    assert fields_without_effect(Run(config_with(sharded), ranks=4)) == []
    assert fields_without_effect(Run(config_with({**fields, "backend.name": "deepspeed_zero2"}), ranks=2)) == []
