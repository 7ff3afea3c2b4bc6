"""The keys of the published flat MFTCoder config: types, published defaults, and a sentence under each key.

Names and defaults come from `MftTrainArgs` in codefuse-ai/MFTCoder (mftcoder_accelerate/src/pefts/mft_arguments.py) and its README.
`mftcoder_json.py` converts them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mftcoder.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Positions,
    PositiveFloat,
    PositiveInt,
    WholeOrFraction,
)
from mftcoder.registry import words

DORMANT = words(
    "coba_warmup_steps coba_history_length coba_tau coba_update_interval coba_sample_valid_num selfpaced_interval "
    "selfpaced_history_length selfpaced_sample_valid_num selfpaced_scale_factor"
)
"""Keys that have an effect only with one loss mode."""

LEGACY = words(
    "tokenizer_type data_weights low_cpu_mem_usage shuffle_before_split use_random_sampler vocab_file use_xformers "
    "weight_by_num_documents make_vocab_size_divisible_by model_parallel_size use_slow_tokenizer world_size"
)
"""Keys without meaning here, accepted with any value. Among them are those that the published system calls legacy."""


SPELLINGS = {"evalation_steps": "evaluation_steps"}
"""Spellings of older releases -> the key."""


def _list_in_a_text(value: Any) -> Any:
    """`"[a, b]"`, the published form of a list, as `["a", "b"]`. Without brackets, commas separate the elements too."""
    if not isinstance(value, str):
        return value
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [part.strip().strip("\"'") for part in inner.split(",") if part.strip()]


Nullable = BeforeValidator(lambda value: None if value in ("", "none", "None", "null", "no") else value)
TextList = BeforeValidator(_list_in_a_text)
Lower = BeforeValidator(lambda value: value.lower().replace("-", "") if isinstance(value, str) else value)
NoneAt16Bits = BeforeValidator(lambda value: None if value == "16bit" else value)


def copied(published: BaseModel, names: str) -> dict[str, Any]:
    """The keys of these names, which have the same names here."""
    return {name: getattr(published, name) for name in names.split()}


class PublishedConfig(BaseModel):
    """A published config, key by key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    data_paths: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), TextList]
    """Task folders with JSONL files, as a list or as the text "[path1,path2]". Each folder is a task."""
    output_dir: Annotated[str, Field(min_length=1)]
    """Folder of the run."""
    tb_dir: str | None = None
    """TensorBoard folder."""
    pretrained_model_path: Annotated[str, Field(min_length=1)]
    """Base model: a folder or a Hub id."""
    model_type: str | None = None
    """Family of the base model. It chooses the chat template; everything else follows the model's own config."""
    load_raw_dataset: bool = True
    """Read JSONL files, not the published tokenized format."""
    task_weights: Annotated[list[NonNegativeFloat] | None, TextList, Nullable] = None
    """Weight of each task in the loss, in the order of data_paths; null: equal weights."""
    data_split: Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=3), TextList] = [98.0, 2.0, 0.0]
    """Parts for training, validation and test, as the text "98,2,0"."""
    padding_mode: Literal["padding", "pack", "concat"] = "padding"
    """One sample in a row, several whole samples in a row, or all samples one after the other."""
    use_dynamic_padding: bool = True
    """Pad to the longest sample of the batch, not to seq_length."""
    tokenize_mode: Literal["sft", "sst"] = "sft"
    """Train the assistant's tokens (sft), or every token (sst)."""
    weighted_loss_mode: Annotated[Literal["case1", "case2", "case3", "case4", "coba", "selfpaced"], Lower] = "case3"
    """How token losses become one loss: docs/balancing.md."""
    peft_type: Annotated[Literal["lora", "qlora"] | None, Nullable] = "qlora"
    """Low-rank adapter (lora), the same on a quantized base (qlora), or all weights (null)."""
    quantization: Annotated[Literal["4bit", "8bit"] | None, Nullable, NoneAt16Bits] = None
    """Bits of the frozen base with peft_type qlora; null: 4bit. As published, it has no effect with other types. "16bit" is the same as null."""
    lora_rank: PositiveInt = 96
    """Rank of the adapter."""
    lora_alpha: PositiveFloat = 32
    """The adapter is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.05
    """Dropout of the adapter's input."""
    target_modules: Annotated[list[str] | None, TextList, Nullable] = None
    """Linear layers that get an adapter; null: all of them."""
    per_device_train_batch_size: PositiveInt = 8
    """Rows of a micro-batch on one device."""
    per_device_eval_batch_size: PositiveInt = 8
    """Rows of a validation batch on one device."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of a step."""
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 5e-6
    """Learning rate at the end of the schedule."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the schedule."""
    num_warmup_steps: Annotated[NonNegativeFloat, WholeOrFraction] = 0.05
    """Warm-up steps. A number below 1 is a fraction of all steps."""
    num_train_epochs: PositiveFloat = 4
    """Passes over the data."""
    max_train_steps: PositiveInt | None = None
    """Optimizer steps; null: num_train_epochs decides."""
    seed: NonNegativeInt = 1234
    """Random seed."""
    seq_length: Positions = 4096
    """Positions of a row. Longer samples are dropped; with concat they are split."""
    preprocessing_num_workers: Annotated[PositiveInt | None, Nullable] = None
    """Processes that tokenize the data; null: one for each core."""
    num_workers: NonNegativeInt = 0
    """Processes of the data loader on each device."""
    checkpoint_activations: bool = True
    """Recompute activations in the backward pass, which saves memory."""
    resume_from_checkpoint: Annotated[str | None, Nullable] = None
    """A checkpoint folder to continue from; null: auto_resume decides."""
    auto_resume: bool = True
    """Continue from the newest checkpoint of output_dir, if there is one."""
    log_interval: PositiveInt = 10
    """Steps between log records."""
    checkpointing_steps: NonNegativeInt | None = 100
    """Steps between checkpoints; null or 0: none."""
    evaluation_steps: PositiveInt = 100
    """Steps between validations."""
    epoch_checkpointing: bool = False
    """Write a checkpoint at the end of each epoch too."""
    early_stopping: bool = True
    """End the run when the validation loss no longer falls."""
    early_stopping_stall_num: PositiveInt = 5
    """The run ends after this many validations in a row without a lower loss."""
    saving_limit: NonNegativeInt | None = None
    """Number of newest checkpoints to keep; null: all."""
    attn_implementation: Literal["flash_attention_2", "sdpa", "eager"] = "flash_attention_2"
    """Implementation of attention."""
    role_markers: dict[Literal["system", "user", "assistant"], str] | None = None
    """Texts before the turns of each role; null: those of the published template."""
    trust_remote_code: bool = False
    """Run code that comes with the model. The published default is true. Here it is false unless the config says true."""
    distributed_type: Annotated[Literal["deepspeed", "fsdp"] | None, Lower, Nullable] = None
    """Engine for many devices."""
    init_timeout_seconds: PositiveInt | None = 3600
    """How long processes wait for each other at the start."""
    coba_warmup_steps: NonNegativeInt = 100
    """CoBa: steps with equal weights."""
    coba_history_length: PositiveInt = 200
    """CoBa: validation losses that the slope is fitted to."""
    coba_tau: PositiveFloat = 5
    """CoBa: temperature of the divergence factor."""
    coba_update_interval: PositiveInt = 1
    """CoBa: steps between changes of the weights."""
    coba_sample_valid_num: PositiveInt = 1
    """CoBa: validation batches for each change."""
    selfpaced_interval: PositiveInt = 1
    """Self-paced: steps between changes of the weights."""
    selfpaced_history_length: PositiveInt = 100
    """Self-paced: validation losses that the slope is fitted to."""
    selfpaced_sample_valid_num: PositiveInt = 1
    """Self-paced: validation batches for each change."""
    selfpaced_scale_factor: PositiveFloat = 50
    """Self-paced: factor before the softmax."""

    @field_validator("data_split")
    @classmethod
    def _leaves_something_to_train(cls, value: list[float]) -> list[float]:
        if not value[0] > 0:
            raise ValueError('the first part, training, must be above 0, as in "98,2,0"')
        return [*value, 0.0][:3]

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
