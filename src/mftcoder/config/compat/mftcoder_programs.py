"""The published programs beside multi-task fine-tuning: preferences (`xxpo`) and full pretraining (`mpt`). Their further keys, converted.

Both take the keys of `mftcoder_json_keys.py`. A config is one of a program if it has a key that only this program has.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from mftcoder.config.compat.mftcoder_json_keys import Nullable, PublishedConfig, copied
from mftcoder.config.section import NonNegativeFloat, PositiveFloat, PositiveInt


class PreferenceProgram(PublishedConfig):
    """The keys of the preference program."""

    xxpo: Literal["dpo", "orpo"]
    """Loss of the pairs. Its presence makes a config one of the preference program."""
    beta: PositiveFloat = 0.1
    """The loss's beta."""
    rpo_alpha: Annotated[NonNegativeFloat | None, Nullable] = None
    """With dpo, weight of the chosen answers' mean token loss."""
    max_prompt_length: PositiveInt | None = 2048
    """Longest prompt. It has no effect: prompts are not cut."""
    max_length: Annotated[int, Field(ge=4, le=2**23)] = 4096
    """Longest text of a pair. A row holds both texts, so data.max_length is twice this."""
    logging_steps: PositiveInt = 10
    """Steps between log records."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    eval_steps: PositiveInt = 100
    """Steps between validations."""
    max_steps: int | None = None
    """Optimizer steps; null, 0 or -1: num_train_epochs decides."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    optimizer_type: Literal["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_8bit", "adamw_bnb_8bit"] = (
        "adamw_torch"
    )
    """Optimizer."""
    dataset_num_proc: PositiveInt | None = None
    """Processes that tokenize."""
    chat_template: Annotated[None, Nullable] = None
    """A Jinja template of your own. Put it into the tokenizer's folder, and set data.chat_template: auto."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the weights."""
    save_only_model: bool = False
    """No effect: every checkpoint holds what a resumed run needs."""


class PretrainingProgram(PublishedConfig):
    """The keys of the pretraining program, which trains all weights."""

    peft_type: Annotated[None, Nullable] = None
    """The program has no adapter."""
    save_transformers_model: bool = False
    """No effect: `mft export` writes the model. Its presence makes a config one of the pretraining program."""


PROGRAMS: tuple[type[PublishedConfig], ...] = (PreferenceProgram, PretrainingProgram)
_MARKS: dict[str, type[PublishedConfig]] = {"xxpo": PreferenceProgram, "save_transformers_model": PretrainingProgram}


def program_of(raw: dict[str, Any]) -> type[PublishedConfig]:
    """The program whose config this is."""
    return next((program for key, program in _MARKS.items() if key in raw), PublishedConfig)


def adapted(nested: dict[str, Any], published: PublishedConfig) -> dict[str, Any]:
    """The nested config of multi-task fine-tuning, changed to what the program does."""
    if isinstance(published, PreferenceProgram):
        return _preferences(nested, published)
    if isinstance(published, PretrainingProgram):
        return {**nested, "tasks": [{**task, "kind": "pretrain"} for task in nested["tasks"]]}
    return nested


def _preferences(nested: dict[str, Any], published: PreferenceProgram) -> dict[str, Any]:
    kind: dict[str, Any] = {"name": published.xxpo, "beta": published.beta}
    if published.xxpo == "dpo" and published.rpo_alpha:
        kind["rpo_alpha"] = published.rpo_alpha
    eight_bits = "8bit" in published.optimizer_type
    steps = published.max_steps if published.max_steps and published.max_steps > 0 else None
    return {
        **nested,
        "model": {**nested["model"], "dtype": published.dtype},
        "tasks": [{**task, "kind": kind} for task in nested["tasks"]],
        # One pair a row, so that batches have the published number of pairs; all pairs count alike, as in one data set.
        "data": {
            **nested["data"],
            "max_length": 2 * published.max_length,
            "packing": "none",
            "padding": "dynamic",
            "over_length": "truncate",
            "num_proc": published.dataset_num_proc,
        },
        "loss": {"normalization": "sample"},
        "balancer": {"name": "uniform"},
        "train": {
            **nested["train"],
            "max_steps": steps,
            "min_lr": 0.0,
            **copied(published, "warmup_steps logging_steps eval_steps save_steps"),
            "save_strategy": "steps",
            "optim": "adamw_8bit" if eight_bits else "adamw",
            "early_stopping_patience": None,
        },
    }


_REPLACED = {
    "log_interval": "logging_steps",
    "checkpointing_steps": "save_steps",
    "evaluation_steps": "eval_steps",
    "max_train_steps": "max_steps",
    "num_warmup_steps": "warmup_steps",
    "seq_length": "max_length",
    "num_workers": "dataset_num_proc",
    "preprocessing_num_workers": "dataset_num_proc",
}
"""Keys of fine-tuning -> those that the preference program has in their place."""
_UNUSED = "max_prompt_length save_only_model min_lr weighted_loss_mode task_weights padding_mode"


def program_warnings(raw: dict[str, Any], published: PublishedConfig) -> list[str]:
    """What of a config the program does not use, or does in another way here."""
    if isinstance(published, PretrainingProgram):
        return ["save_transformers_model: has no effect; mft export writes the model"]
    if not isinstance(published, PreferenceProgram):
        return []
    notes = [f"{key}: has no effect with xxpo; {other} has" for key, other in _REPLACED.items() if key in raw]
    if unused := [key for key in _UNUSED.split() if key in raw]:
        notes.append(f"these keys have no effect with xxpo: {', '.join(unused)}")
    if published.xxpo == "orpo" and published.rpo_alpha:
        notes.append("rpo_alpha: has no effect with xxpo: orpo, whose loss has such a term already")
    notes.append(f"data.max_length: {2 * published.max_length}, because a row holds both texts of a pair")
    return notes
