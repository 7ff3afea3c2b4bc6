"""Names of our fields in other trainers, for "did you mean". A config cannot use them."""

from typing import Any, get_args

from pydantic import BaseModel

from mftcoder.config import schema
from mftcoder.config.balancer import option_names, suggest_option
from mftcoder.config.kinds import KINDS
from mftcoder.registry import BALANCERS, did_you_mean

_OTHER_NAMES = {
    "model.model_name_or_path": "base_model model_id pretrained_model_path",
    "model.dtype": "torch_dtype bf16 fp16",
    "model.attn_implementation": "flash_attn flash_attention",
    "model.quantization": "load_in_4bit load_in_8bit quantization_bit",
    "model.tokenizer_name_or_path": "tokenizer",
    "adapter.type": "finetuning_type peft_type use_lora",
    "adapter.lora_rank": "r lora_r rank",
    "adapter.lora_target": "target_modules lora_target_modules",
    "data.max_length": "cutoff_len sequence_len max_seq_length max_seq_len seq_length model_max_length",
    "data.packing": "sample_packing neat_packing",
    "data.chat_template": "template",
    "data.val_size": "val_set_size validation_split",
    "tasks": "datasets dataset",
    "data.train_on": "train_on_inputs assistant_only_loss mask_history",
    "data.sampling": "mix_strategy",
    "data.num_proc": "dataset_processes preprocessing_num_workers",
    "data.cache_dir": "dataset_prepared_path",
    "loss.normalization": "weighted_loss_mode",
    "tasks.<name>.weight": "task_weights",
    "train.num_train_epochs": "epochs num_epochs",
    "train.max_steps": "max_train_steps",
    "train.per_device_train_batch_size": "batch_size micro_batch_size",
    "train.per_device_eval_batch_size": "eval_batch_size",
    "train.gradient_accumulation_steps": "grad_accum",
    "train.learning_rate": "lr",
    "train.lr_scheduler_type": "scheduler lr_scheduler",
    "train.optim": "optimizer optim_type",
    "train.warmup_steps": "warmup_ratio num_warmup_steps",
    "train.decay_steps": "num_decay_steps",
    "tasks.<name>.kind.fim_rate": "fim_ratio",
    "tasks.<name>.kind": "stage",
    "train.max_grad_norm": "gradient_clipping clip_grad",
    "train.eval_steps": "evaluation_steps evals_per_epoch",
    "train.eval_strategy": "evaluation_strategy",
    "train.save_steps": "checkpointing_steps saves_per_epoch",
    "train.save_total_limit": "saving_limit",
    "train.logging_steps": "log_interval",
    "train.logging_dir": "tb_dir",
    "train.resume_from_checkpoint": "resume auto_resume",
    "train.early_stopping_patience": "early_stopping_stall_num early_stopping",
    "train.dataloader_num_workers": "num_workers",
    "output_dir": "out_dir save_dir output",
}
ALIASES = {name: field for field, names in _OTHER_NAMES.items() for name in names.split()}


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
