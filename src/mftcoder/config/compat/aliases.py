"""Names of our fields in other trainers, for "did you mean". A config cannot use them."""

from typing import Any, get_args

from pydantic import BaseModel

from mftcoder.config import schema
from mftcoder.config.balancer import option_names, suggest_option
from mftcoder.config.kinds import KINDS
from mftcoder.registry import BALANCERS, did_you_mean

ALIASES: dict[str, str] = {
    # model
    "base_model": "model.model_name_or_path",
    "model_id": "model.model_name_or_path",
    "pretrained_model_path": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "flash_attn": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "quantization_bit": "model.quantization",
    "tokenizer": "model.tokenizer_name_or_path",
    # adapter
    "finetuning_type": "adapter.type",
    "peft_type": "adapter.type",
    "r": "adapter.lora_rank",
    "lora_r": "adapter.lora_rank",
    "rank": "adapter.lora_rank",
    "target_modules": "adapter.lora_target",
    "lora_target_modules": "adapter.lora_target",
    "use_lora": "adapter.type",
    # data
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "seq_length": "data.max_length",
    "model_max_length": "data.max_length",
    "sample_packing": "data.packing",
    "neat_packing": "data.packing",
    "template": "data.chat_template",
    "val_set_size": "data.val_size",
    "validation_split": "data.val_size",
    "datasets": "tasks",
    "dataset": "tasks",
    "train_on_inputs": "data.train_on",
    "assistant_only_loss": "data.train_on",
    "mask_history": "data.train_on",
    "mix_strategy": "data.sampling",
    "dataset_processes": "data.num_proc",
    "preprocessing_num_workers": "data.num_proc",
    "dataset_prepared_path": "data.cache_dir",
    # loss
    "weighted_loss_mode": "loss.normalization",
    "task_weights": "tasks.<name>.weight",
    # train
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "max_train_steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "lr": "train.learning_rate",
    "scheduler": "train.lr_scheduler_type",
    "lr_scheduler": "train.lr_scheduler_type",
    "optimizer": "train.optim",
    "optim_type": "train.optim",
    "warmup_ratio": "train.warmup_steps",
    "num_decay_steps": "train.decay_steps",
    "fim_ratio": "tasks.<name>.kind.fim_rate",
    "stage": "tasks.<name>.kind",
    "num_warmup_steps": "train.warmup_steps",
    "gradient_clipping": "train.max_grad_norm",
    "clip_grad": "train.max_grad_norm",
    "evaluation_steps": "train.eval_steps",
    "evals_per_epoch": "train.eval_steps",
    "evaluation_strategy": "train.eval_strategy",
    "checkpointing_steps": "train.save_steps",
    "saves_per_epoch": "train.save_steps",
    "saving_limit": "train.save_total_limit",
    "log_interval": "train.logging_steps",
    "tb_dir": "train.logging_dir",
    "resume": "train.resume_from_checkpoint",
    "auto_resume": "train.resume_from_checkpoint",
    "early_stopping_stall_num": "train.early_stopping_patience",
    "early_stopping": "train.early_stopping_patience",
    "num_workers": "train.dataloader_num_workers",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "output": "output_dir",
}


def suggest(location: tuple[Any, ...], raw: dict[str, Any]) -> str:
    """What the unknown key at `location` of the config `raw` may mean; starts with a space.

    A field of another section is named with its section: `train.lr` -> `train.learning_rate`, `learning_rate` -> the same.
    """
    key = str(location[-1])
    if location[:-1] == ("balancer",):
        return suggest_option(key, raw["balancer"])
    if location[:1] == ("tasks",) and location[2:-1] == ("kind",):
        return did_you_mean(key, _options_of_kind(location, raw))
    siblings = _fields_beside(location)
    if key in ALIASES and key not in siblings:
        return f" Did you mean '{ALIASES[key]}'?"
    elsewhere = [dotted for dotted in all_fields() if dotted.rsplit(".", 1)[-1] == key]
    if elsewhere:
        # Balancers have a learning rate and a warm-up too; the bare name means the one of the training.
        return f" Did you mean '{min(elsewhere, key=lambda dotted: dotted.startswith('balancer.'))}'?"
    return did_you_mean(key, siblings)


def _options_of_kind(location: tuple[Any, ...], raw: dict[str, Any]) -> list[str]:
    """The options of the kind that the task at `location` names."""
    tasks = raw["tasks"]
    kind = (list(tasks.values()) if isinstance(tasks, dict) else tasks)[location[1]]["kind"]
    return list(KINDS[kind.get("name", "sft")].model_fields)


def all_fields() -> list[str]:
    """Every field as a dotted path: `train.seed`, `tasks.<name>.weight`, `balancer.tau` (options of this package's methods only)."""
    options = dict.fromkeys(option for method in BALANCERS.table for option in option_names(method))
    paths = [f"balancer.{option}" for option in options]
    kinds = dict.fromkeys(option for kind in KINDS.values() for option in kind.model_fields)
    paths += [f"tasks.<name>.kind.{option}" for option in kinds]
    for name, field in schema.RunConfig.model_fields.items():
        section = _section_of(field.annotation)
        prefix = f"{name}.<name>" if name == "tasks" else name
        paths += [f"{prefix}.{inner}" for inner in section.model_fields] if section else [name]
    return paths


def _fields_beside(location: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = schema.RunConfig
    for part in location[:-1]:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The Section inside an annotation such as `tuple[TaskConfig, ...]` or `RoleMarkers | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_of(inner))), None)
