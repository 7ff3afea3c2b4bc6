"""Convert the published flat MFTCoder JSON config into the nested config: every documented key, with the published defaults.

The source is a file such as `configs/lora_train_config.json` of codefuse-ai/MFTCoder (mftcoder_accelerate). What this version cannot do
is refused, all of it at once. A key without effect is named in a warning. The conversion also reads the tokenizer files of a local model,
to see whether it uses ChatML, and the environment variables of accelerate's DeepSpeed flags.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mftcoder.config.compat.accelerate_deepspeed import deepspeed_backend
from mftcoder.config.compat.mftcoder_json_keys import DORMANT, LEGACY, SPELLINGS, PublishedConfig, copied
from mftcoder.config.compat.mftcoder_programs import (
    PROGRAMS,
    PretrainingProgram,
    adapted,
    program_of,
    program_warnings,
)
from mftcoder.config.problems import one_line, problem_lines
from mftcoder.errors import ConfigError
from mftcoder.registry import did_you_mean

NOT_RAW = "the published .bin format is not read. Use true, with data_paths naming JSONL folders"
"""Why `load_raw_dataset: false` is refused."""

NORMALIZATION = {
    "case1": "token",
    "case2": "sample",
    "case3": "task_token",
    "case4": "task_sample",
    "coba": "task_token",  # the published trainer takes case3's loss, with moving weights
    "selfpaced": "task_token",
}
CHATML_TOKEN = "<|im_start|>"
TOKENIZER_FILES = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json")
WEIGHTLESS = ("case1", "case2")
"""Modes in which the published trainer ignores task_weights."""
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


@dataclass(frozen=True)
class Converted:
    """The nested config, and warnings about it."""

    nested: dict[str, Any]
    warnings: tuple[str, ...] = ()


def is_published(raw: dict[str, Any]) -> bool:
    """Whether the keys are those of the published JSON rather than our sections."""
    return bool({"pretrained_model_path", "data_paths"} & raw.keys()) and not {"model", "tasks"} & raw.keys()


def is_published_key(name: str) -> bool:
    """Whether the published config has a key of this name."""
    programs: tuple[type[PublishedConfig], ...] = (PublishedConfig, *PROGRAMS)
    return name in LEGACY or name in SPELLINGS or any(name in program.model_fields for program in programs)


def convert(raw: dict[str, Any], *, origin: str) -> Converted:
    """The same run as a nested config. ConfigError lists every key that is unknown, wrong, or cannot be used in this version."""
    known = {SPELLINGS.get(key, key): value for key, value in raw.items() if key not in LEGACY}
    problems = [
        f"{origin}: {other}: is the same key as {key}, which is there too. Remove one of them"
        for other, key in SPELLINGS.items()
        if other in raw and key in raw
    ]
    published, program = None, program_of(raw)
    try:
        published = program.model_validate(known)
    except ValidationError as error:
        problems += problem_lines(error, known, origin=origin, suggest=lambda location: _suggest(location, program))
    refused = [f"load_raw_dataset: {NOT_RAW}"] if known.get("load_raw_dataset") is False else []
    problems += [one_line(f"{origin}: {problem}") for problem in [*refused, *_placeholders(known)]]
    if published is None or problems:
        raise ConfigError.collect(dict.fromkeys(problems))
    warnings = (*_warnings(raw, published), *program_warnings(raw, published))
    return Converted(adapted(_nested(published), published), warnings)


def _suggest(location: tuple[str | int, ...], program: type[PublishedConfig]) -> str:
    return did_you_mean(str(location[-1]), [*program.model_fields, *LEGACY, *SPELLINGS])


def _placeholders(raw: dict[str, Any]) -> list[str]:
    """One sentence for each placeholder of the published examples, such as `$DATA_PATHS`, that was not replaced."""
    return [
        f"{key}: '{value}' is a placeholder of the published example; write the path in its place"
        for key, value in raw.items()
        if isinstance(value, str) and re.fullmatch(r"\$\{?\w+\}?", value)
    ]


def _warnings(raw: dict[str, Any], published: PublishedConfig) -> tuple[str, ...]:
    mode = published.weighted_loss_mode
    idle = [key for key in raw if key in LEGACY or (key in DORMANT and not key.startswith(f"{mode}_"))]
    notes = [f"these keys of the published config have no effect here: {', '.join(idle)}"] if idle else []
    if mode == "coba":
        notes.append("weighted_loss_mode: coba is the paper's; balancer.variant=released is the published code's")
    if published.peft_type == "qlora" and raw.get("quantization") == "16bit":
        notes.append("quantization: 4bit is used; the published trainer takes 4 bits for qlora, whatever this key says")
    if published.task_weights and mode in WEIGHTLESS:
        notes.append(
            f"task_weights: have no effect with weighted_loss_mode {mode}, as published; tasks.<name>.weight has"
        )
    if published.quantization and published.peft_type != "qlora":
        notes.append(f"quantization: {published.quantization} has no effect without peft_type: qlora, as published")
    if published.quantization == "8bit" and published.peft_type == "qlora":
        notes.append("quantization: 8bit is used; the published trainer takes 4 bits for qlora, whatever this key says")
    if published.data_split[2] > 0:
        notes.append("data_split: the third part is held out together with the second; there is no test split here")
    if published.padding_mode == "concat" and type(published) is PublishedConfig:
        notes.append(
            "padding_mode: concat packs whole samples, isolated from each other, and splits the over-long ones"
        )
    if published.role_markers is None and not isinstance(published, PretrainingProgram):
        row, reason = _template(published)
        notes.append(f"data.chat_template: {row}, {reason}. docs/data.md lists the rows of the published models")
    return tuple(notes)


def _template(published: PublishedConfig) -> tuple[str, str]:
    """The template row of this model, and why."""
    if (published.model_type or "").lower().startswith("qwen"):
        return "chatml", f"for model_type is {published.model_type}"
    if _uses_chatml(published.pretrained_model_path):
        return "chatml", f"for the tokenizer of {published.pretrained_model_path} has {CHATML_TOKEN}"
    return "mftcoder-v0.3", "what the code of versions 0.3 to 0.5 trains"


def _uses_chatml(model: str) -> bool:
    """Whether `model` is a folder whose tokenizer has ChatML's token. A model on the Hub is not read, so the answer is no."""
    for name in TOKENIZER_FILES:
        try:
            if CHATML_TOKEN.encode() in (Path(model).expanduser() / name).read_bytes():
                return True
        except (OSError, ValueError, RuntimeError):  # no such file, a name that cannot be one, no home folder
            continue
    return False


def _nested(published: PublishedConfig) -> dict[str, Any]:
    return {
        "model": _model(published),
        "adapter": _adapter(published),
        "tasks": _tasks(published),
        "data": _data(published),
        "loss": {"normalization": NORMALIZATION[published.weighted_loss_mode]},
        "balancer": _balancer(published),
        "train": {**_loop(published), **_evaluation(published), **_checkpoints(published)},
        "backend": _backend(published),
        "output_dir": published.output_dir,
    }


def _model(published: PublishedConfig) -> dict[str, Any]:
    # flash_attention_2 is the published default and asks for speed: auto is the fastest that this machine and model allow.
    attention = "auto" if published.attn_implementation == "flash_attention_2" else published.attn_implementation
    model: dict[str, Any] = {
        "model_name_or_path": published.pretrained_model_path,
        "dtype": "bfloat16",
        "attn_implementation": attention,
    }
    if published.peft_type == "qlora":
        model["quantization"] = published.quantization or "4bit"
    return {**model, "trust_remote_code": True} if published.trust_remote_code else model


def _adapter(published: PublishedConfig) -> dict[str, Any]:
    if published.peft_type is None:
        return {"type": "full"}
    return {
        "type": "lora",
        **copied(published, "lora_rank lora_alpha lora_dropout"),
        "lora_target": list(published.target_modules or ["all-linear"]),
    }


def _tasks(published: PublishedConfig) -> list[dict[str, Any]]:
    """One task for each folder, with the folder's name. If two folders have the same name, the parent's name goes in front."""
    paths = [Path(path) for path in published.data_paths]
    names = [path.name.split(".jsonl")[0] for path in paths]
    named = [
        f"{path.parent.name}-{name}" if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
    ]
    weights = published.task_weights
    if weights is None or published.weighted_loss_mode in WEIGHTLESS:
        weights = [1.0] * len(paths)
    return [
        {"name": name, "path": path, "weight": weight}
        for name, path, weight in zip(named, published.data_paths, weights, strict=True)
    ]


def _data(published: PublishedConfig) -> dict[str, Any]:
    train, *held_out = published.data_split
    packed = published.padding_mode != "padding"
    data: dict[str, Any] = {
        "train_on": "all" if published.tokenize_mode == "sst" else "assistant",
        "max_length": published.seq_length,
        "packing": "best_fit" if packed else "none",
        "padding": "dynamic" if published.use_dynamic_padding else "max_length",
        "over_length": "split" if published.padding_mode == "concat" else "drop",
        "val_size": sum(held_out) / (train + sum(held_out)),
        "num_proc": published.preprocessing_num_workers,
    }
    if published.role_markers:
        return {
            **data,
            "role_markers": {**published.role_markers, "after_content": "\n"},
        }  # as the published code writes them
    return {**data, "chat_template": _template(published)[0]}


def _balancer(published: PublishedConfig) -> dict[str, Any]:
    if published.weighted_loss_mode == "selfpaced":
        return {
            "name": "selfpaced",
            "warmup_steps": published.selfpaced_history_length,
            "window": published.selfpaced_history_length
            * published.selfpaced_interval,  # in the published code it counts losses
            "update_interval": published.selfpaced_interval,
            "val_batches": published.selfpaced_sample_valid_num,
            "gain": published.selfpaced_scale_factor,
        }
    if published.weighted_loss_mode != "coba":
        return {"name": "uniform"}
    return {
        "name": "coba",
        "warmup_steps": published.coba_warmup_steps,
        "window": published.coba_history_length,
        "tau": published.coba_tau,
        "update_interval": published.coba_update_interval,
        "val_batches": published.coba_sample_valid_num,
    }


def _backend(published: PublishedConfig) -> dict[str, Any]:
    if published.distributed_type == "deepspeed":
        backend = deepspeed_backend()  # the launcher has its stage
    else:
        backend = {"name": "fsdp2" if published.distributed_type == "fsdp" else "auto"}
    patience = published.init_timeout_seconds
    return {**backend, "init_timeout_seconds": patience} if patience else backend


def _loop(published: PublishedConfig) -> dict[str, Any]:
    # transformers' "constant", which the published trainer calls, has no warm-up; "constant_with_warmup" has.
    warmup = 0 if published.lr_scheduler_type == "constant" else published.num_warmup_steps
    return {
        "num_train_epochs": published.num_train_epochs,
        "max_steps": published.max_train_steps,
        **copied(published, "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps"),
        "gradient_checkpointing": published.checkpoint_activations,
        "dataloader_num_workers": published.num_workers,
        "seed": published.seed,
        "logging_steps": published.log_interval,
        "logging_dir": published.tb_dir,
        **copied(published, "learning_rate min_lr weight_decay"),
        "lr_scheduler_type": SCHEDULES[published.lr_scheduler_type],
        "warmup_steps": warmup,
    }


def _evaluation(published: PublishedConfig) -> dict[str, Any]:
    if not sum(published.data_split[1:]):
        return {"eval_strategy": "no"}
    patience = published.early_stopping_stall_num if published.early_stopping else None
    return {"eval_strategy": "steps", "eval_steps": published.evaluation_steps, "early_stopping_patience": patience}


def _checkpoints(published: PublishedConfig) -> dict[str, Any]:
    by_steps, by_epoch = bool(published.checkpointing_steps), published.epoch_checkpointing
    strategy = {(True, True): "steps_and_epoch", (True, False): "steps", (False, True): "epoch", (False, False): "no"}
    saving: dict[str, Any] = {
        "save_strategy": strategy[by_steps, by_epoch],
        "save_total_limit": published.saving_limit or None,
        "resume_from_checkpoint": published.resume_from_checkpoint or published.auto_resume,
    }
    return {**saving, "save_steps": published.checkpointing_steps} if by_steps else saving
