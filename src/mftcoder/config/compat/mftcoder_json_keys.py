"""The keys of the published flat MFTCoder config: their types, their published defaults, a sentence under each.

The names and defaults are facts of `MftTrainArgs` in codefuse-ai/MFTCoder (mftcoder_accelerate/src/pefts/mft_arguments.py) and
its README. What becomes of each key is said in `mftcoder_json.py`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mftcoder.config.section import Fraction, NonNegativeFloat, NonNegativeInt, Positions, PositiveFloat, PositiveInt

DORMANT = frozenset(
    {"coba_warmup_steps", "coba_history_length", "coba_tau", "coba_update_interval", "coba_sample_valid_num"}
    | {"selfpaced_interval", "selfpaced_history_length", "selfpaced_sample_valid_num", "selfpaced_scale_factor"}
)
"""Keys that belong to something a convertible config does not use: another loss mode."""

LEGACY = frozenset(
    {"tokenizer_type", "data_weights", "low_cpu_mem_usage", "shuffle_before_split", "use_random_sampler", "vocab_file"}
    | {"use_xformers", "weight_by_num_documents", "make_vocab_size_divisible_by", "model_parallel_size"}
    | {"use_slow_tokenizer", "world_size"}
)
"""Keys without meaning today, the published system's own "legacy, leave them" among them; accepted with any value."""


SPELLINGS = {"evalation_steps": "evaluation_steps"}
"""Keys as older releases spell them -> the name they have here."""


def _list_in_a_text(value: Any) -> Any:
    """`"[a, b]"`, the published way to write a list, is `["a", "b"]`; a text without brackets is a list of one or, with commas, more."""
    if not isinstance(value, str):
        return value
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [part.strip().strip("\"'") for part in inner.split(",") if part.strip()]


def _false_is_none(value: Any) -> Any:
    return None if value in ("", "none", "None", "null", "no") else value


def _lower(value: Any) -> Any:
    return value.lower().replace("-", "") if isinstance(value, str) else value


def _whole_weights_are_none(value: Any) -> Any:
    return None if value == "16bit" else value


Nullable = BeforeValidator(_false_is_none)
TextList = BeforeValidator(_list_in_a_text)


class PublishedConfig(BaseModel):
    """A published config, key by key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    data_paths: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), TextList]
    """Task folders of JSONL, as a list or as the text "[path1,path2]"; a folder is a task."""
    output_dir: Annotated[str, Field(min_length=1)]
    """Folder of the run."""
    tb_dir: str | None = None
    """TensorBoard folder."""
    pretrained_model_path: Annotated[str, Field(min_length=1)]
    """Base model: a folder or a Hub id."""
    model_type: str | None = None
    """Family of the base model; the model's own config says it too, and is believed."""
    load_raw_dataset: bool = True
    """JSONL rather than the published tokenised format."""
    task_weights: Annotated[list[NonNegativeFloat] | None, TextList, Nullable] = None
    """Weight of each task in the loss, in the order of data_paths; null for equal weights."""
    data_split: Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=3), TextList] = [98.0, 2.0, 0.0]
    """Shares for training, validation and test, as the text "98,2,0"."""
    padding_mode: Literal["padding", "pack", "concat"] = "padding"
    """A row a sample, several whole samples a row, or all samples end to end."""
    use_dynamic_padding: bool = True
    """Fill up to the longest sample of the batch rather than to seq_length."""
    tokenize_mode: Literal["sft", "sst"] = "sft"
    """Train the assistant's tokens, or (sst) every token."""
    weighted_loss_mode: Annotated[
        Literal["case1", "case2", "case3", "case4", "coba", "selfpaced"], BeforeValidator(_lower)
    ] = "case3"
    """How token losses become one loss."""
    peft_type: Annotated[Literal["lora", "qlora"] | None, Nullable] = "qlora"
    """Low-rank adapter, the same on a 4-bit base, or null: all weights."""
    quantization: Annotated[Literal["4bit", "8bit"] | None, Nullable, BeforeValidator(_whole_weights_are_none)] = None
    """Bits of the frozen base with peft_type qlora, null for 4bit; without effect for the other types, as published. "16bit" is null."""
    lora_rank: PositiveInt = 96
    """Rank of the adapter."""
    lora_alpha: PositiveFloat = 32
    """The adapter is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.05
    """Dropout in front of the adapter."""
    target_modules: Annotated[list[str] | None, TextList, Nullable] = None
    """Linear layers that get an adapter; null for all of them."""
    per_device_train_batch_size: PositiveInt = 8
    """Rows of a micro-batch on one device."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows of a validation batch on one device."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of a step."""
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 5e-6
    """Learning rate at the end."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the schedule."""
    num_warmup_steps: NonNegativeFloat = 0.05
    """Warm-up steps; below 1 a share of all steps."""
    num_train_epochs: PositiveFloat = 4
    """Passes over the data."""
    max_train_steps: PositiveInt | None = None
    """Optimizer steps; null for num_train_epochs."""
    seed: NonNegativeInt = 1234
    """Random seed."""
    seq_length: Positions = 4096
    """Positions of a row; longer samples are dropped (concat: split)."""
    preprocessing_num_workers: Annotated[PositiveInt | None, Nullable] = None
    """Processes that tokenise the data; null for all cores."""
    num_workers: NonNegativeInt = 0
    """Processes of the data loader on each device."""
    checkpoint_activations: bool = True
    """Compute activations again in the backward pass, which saves memory."""
    resume_from_checkpoint: Annotated[str | None, Nullable] = None
    """A checkpoint folder to go on from; null leaves it to auto_resume."""
    auto_resume: bool = True
    """Go on from the newest checkpoint of output_dir, if there is one."""
    log_interval: PositiveInt = 10
    """Steps between log records."""
    checkpointing_steps: NonNegativeInt | None = 100
    """Steps between checkpoints; null or 0 for none."""
    evaluation_steps: PositiveInt = 100
    """Steps between validations."""
    epoch_checkpointing: bool = False
    """A checkpoint at the end of each epoch as well."""
    early_stopping: bool = True
    """Stop when the validation loss no longer falls."""
    early_stopping_stall_num: PositiveInt = 5
    """Validations without progress after which training stops."""
    saving_limit: NonNegativeInt | None = None
    """Newest checkpoints kept; null for all."""
    attn_implementation: Literal["flash_attention_2", "sdpa", "eager"] = "flash_attention_2"
    """Attention code."""
    role_markers: dict[Literal["system", "user", "assistant"], str] | None = None
    """Texts that open the turns; null for those of the published template."""
    trust_remote_code: bool = False
    """Run code that comes with the model. The published default is true; here only an explicit true turns it on."""
    distributed_type: Annotated[Literal["deepspeed", "fsdp"] | None, BeforeValidator(_lower), Nullable] = None
    """Engine for many devices."""
    init_timeout_seconds: PositiveInt | None = 3600
    """Patience of the process group at its start."""
    coba_warmup_steps: NonNegativeInt = 100
    """CoBa: steps with equal weights."""
    coba_history_length: PositiveInt = 200
    """CoBa: validation losses that the slope is fitted to."""
    coba_tau: PositiveFloat = 5
    """CoBa: temperature of the divergence factor."""
    coba_update_interval: PositiveInt = 1
    """CoBa: steps between changes of the weights."""
    coba_sample_valid_num: PositiveInt = 1
    """CoBa: validation batches a change."""
    selfpaced_interval: PositiveInt = 1
    """Self-paced: steps between changes of the weights."""
    selfpaced_history_length: PositiveInt = 100
    """Self-paced: validation losses that the slope is fitted to."""
    selfpaced_sample_valid_num: PositiveInt = 1
    """Self-paced: validation batches a change."""
    selfpaced_scale_factor: PositiveFloat = 50
    """Self-paced: factor before the softmax."""

    @field_validator("data_split")
    @classmethod
    def _leaves_something_to_train(cls, value: list[float]) -> list[float]:
        if not value[0] > 0:
            raise ValueError('the first share, training, must be above 0, as in "98,2,0"')
        return [*value, 0.0][:3]

    @field_validator("num_warmup_steps")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value >= 1 and value != math.floor(value):
            raise ValueError(f"{value} is neither a whole number of steps nor a share below 1")
        return value

    @field_validator("role_markers")
    @classmethod
    def _has_both_sides(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        missing = [role for role in ("user", "assistant") if value is not None and role not in value]
        if missing:
            raise ValueError(f"has no marker for {' and '.join(missing)}")
        return value

    @model_validator(mode="after")
    def _a_weight_a_task(self) -> "PublishedConfig":
        if self.task_weights is not None and len(self.task_weights) != len(self.data_paths):
            raise ValueError(
                f"task_weights: {len(self.task_weights)} weights for {len(self.data_paths)} data_paths; give one each"
            )
        return self
