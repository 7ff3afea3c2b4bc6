"""What a run is: nested, frozen, validated. Unknown keys are refused; the sentence under a field is its documentation.

Names are the ones people already type in Hugging Face, LLaMA-Factory and axolotl configs wherever one exists. Nothing here
reads a file or knows a library of models: `load.py` reads, the rooms use.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mftcoder.config.backend import BackendConfig
from mftcoder.config.balancer import BalancerConfig
from mftcoder.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PathOrSwitch,
    PathText,
    Positions,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from mftcoder.registry import FORMATS, did_you_mean


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
Paths = Annotated[tuple[PathText, ...], BeforeValidator(_one_or_many)]


class ModelConfig(Section):
    """Which base model and how it is held in memory."""

    model_name_or_path: PathText
    """A Hub id, a local folder in Hugging Face layout, or a .gguf file."""
    tokenizer_name_or_path: PathText | None = None
    """Where the tokenizer comes from, if not from the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and activations."""
    attn_implementation: Literal["auto", "segments", "varlen", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention: auto picks the fastest that isolates packed samples on this machine and this model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you know the author."""
    use_safetensors: bool = True
    """Refuse pickled weights, which can run code when loaded."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Hold the frozen base weights in 4 bits (NF4, double quantisation) or 8 (LLM.int8) and train LoRA on top: QLoRA. Computes in `dtype`; needs the extra `qlora`."""


class AdapterConfig(Section):
    """Which weights are trained: all of them, or a low-rank addition."""

    type: Literal["full", "lora"] = "lora"
    """full trains every weight; lora trains low-rank additions and leaves the base as it is."""
    lora_rank: PositiveInt = 16
    """Rank of the low-rank addition."""
    lora_alpha: PositiveFloat = 32.0
    """The addition is scaled by lora_alpha / lora_rank."""
    lora_dropout: Share = 0.0
    """Dropout in front of the addition."""
    lora_target: Strings = ("all-linear",)
    """Names of the linear layers that get one, or all-linear."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA)."""
    peft_forward: bool = False
    """Compute every layer with peft's own forward, as layers with dropout or DoRA always are: slower, for comparison."""


class TaskConfig(Section):
    """One task: where its examples lie and how much it counts."""

    name: str
    """Name of the task, as it stands in tables and metrics."""
    path: PathText | None = None
    """A folder of .jsonl or .jsonl.gz files, one such file, or the id of a dataset on the Hub."""
    files: Paths = ()
    """The training files one by one, instead of `path`."""
    validation: Paths = ()
    """Validation files or folders. Without them a share of the training data is held out (data.val_size)."""
    format: str = "auto"
    """Dialect of the records: auto looks at each record."""
    weight: NonNegativeFloat = 1.0
    """Weight of the task in the objective."""
    sampling_weight: NonNegativeFloat | None = None
    """Share of the rows that come from this task, with data.sampling: weights."""
    max_samples: PositiveInt | None = None
    """Use only this many examples, chosen by the hash of their content."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value != "auto" and value not in FORMATS.names():
            raise ValueError(f"unknown format '{value}'.{did_you_mean(value, ['auto', *FORMATS.names()])}")
        return value

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not value or set(value) & set("/\\\0\n") or value.startswith("."):
            raise ValueError(f"'{value}' cannot name a task: no slash, no line break, no leading dot")
        return value

    @model_validator(mode="after")
    def _has_data(self) -> "TaskConfig":
        if bool(self.path) == bool(self.files):
            raise ValueError("give either `path` (a folder, a file or a Hub dataset) or `files`")
        return self


class RoleMarkers(Section):
    """The texts that open each role's turn in a template of one's own."""

    system: str = ""
    """Stands before the system message."""
    user: str
    """Stands before each user message."""
    assistant: str
    """Stands before each assistant message."""
    after_content: str = ""
    """Stands behind each content, and behind the end token; trained behind an answer. The published trainer has a line break."""


class DataConfig(Section):
    """From records to rows: template, lengths, packing, validation, sampling."""

    chat_template: str = "auto"
    """mftcoder, mftcoder-v0.3, codefuse-codellama, chatml, or auto: the tokenizer's own template."""
    role_markers: RoleMarkers | None = None
    """A template of one's own: marker, content, marker, content, end token. Replaces chat_template."""
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens are trained: every assistant turn, the last one only, or all of the text."""
    max_length: Positions = 2048
    """Positions of a row, and the most a sample may have."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several samples into a row of max_length, isolated from each other; none gives each a row."""
    padding: Literal["dynamic", "max_length"] = "dynamic"
    """With packing: none, rows are filled up to the longest of their batch (grouped by length) or to max_length."""
    over_length: Literal["truncate", "drop", "split"] = "truncate"
    """What happens to a sample longer than max_length; counted per task."""
    val_size: Share = 0.02
    """Share of each task held out for validation, by a hash of the content; 0 for none."""
    max_val_samples: PositiveInt | None = None
    """At most this many validation samples a task, chosen by the hash of their content."""
    on_error: Literal["fail", "skip"] = "fail"
    """A record that cannot be used ends the run with a list of them all, or is left out, counted and listed."""
    max_errors: PositiveInt = 20
    """How many data errors are printed."""
    sampling: Literal["proportional", "uniform", "temperature", "weights"] = "proportional"
    """How often a task's rows come up: by its size (each sample once an epoch), equally, by size^(1/T), or as given."""
    sampling_temperature: PositiveFloat = 2.0
    """T of data.sampling: temperature; 1 is proportional, large is uniform."""
    cache_dir: PathText | None = None
    """Where tokenised data is kept; default $MFTCODER_CACHE or ~/.cache/mftcoder."""
    num_proc: PositiveInt | None = None
    """Processes that tokenise; default all cores."""

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_may_be_a_switch(cls, value: Any) -> Any:
        return {True: "best_fit", False: "none"}.get(value, value) if isinstance(value, bool) else value


class LossConfig(Section):
    """The objective of a step."""

    normalization: Literal["token", "sample", "task_token", "task_sample", "corpus"] = "task_token"
    """Weighted mean over tokens, over samples, or over tasks of their token or sample means (MFTCoder's case1 to case4); corpus gives
    each token of a task the same coefficient all epoch, so that rare tasks have their full weight."""
    absent_task: Literal["renormalize", "keep"] = "renormalize"
    """A task missing from a step leaves its weight to the others, or leaves it unused (task_token, task_sample)."""
    focal: Literal["none", "sample", "task"] = "none"
    """Weigh each sample, or each task, by (1 - its mean token probability)^focal_gamma: hard ones count more."""
    focal_gamma: NonNegativeFloat = 2.0
    """Exponent of the focal weight; 0 is no focal weight."""
    focal_detach: bool = True
    """Treat the focal weight as a constant; false lets gradients flow through it."""
    router_aux_loss_coef: NonNegativeFloat | None = None
    """Factor of the load-balancing loss of a mixture of experts' routers; null for the model's published one, 0 for none."""


class TrainConfig(Section):
    """The loop: steps, optimiser, schedule, evaluation, checkpoints, logs."""

    num_train_epochs: PositiveFloat = 3.0
    """Passes over the data, if max_steps is not given."""
    max_steps: PositiveInt | None = None
    """Optimiser steps; wins over num_train_epochs."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows of a micro-batch on one device."""
    per_device_eval_batch_size: PositiveInt | None = None
    """Rows of a validation batch; default as in training."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of a step. How a step is split does not change it."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the schedule."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the schedule after the warm-up."""
    warmup_steps: NonNegativeFloat = 0.0
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.95
    """Decay of the second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; null for no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step with a nan or infinite loss or gradient changes nothing. stop: nor does any later one, and the run ends; skip: it is
    counted, and the run goes on. On a GPU it is found when results are read, at the next record (logging_steps), validation or
    checkpoint; with skip its sample is then looked for with the weights of that moment."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    torch_compile: bool = False
    """Compile the decoder layers: faster on a GPU after a minute of compiling."""
    deterministic: bool = False
    """Use only GPU kernels that give the same bits each time, so that a resumed run repeats an uninterrupted one exactly: slower. CPUs always do."""
    seed: NonNegativeInt = 42
    """Seed of the order of the data, of new weights and of dropout."""
    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When validation runs; the first and the last step are always measured unless no."""
    eval_steps: PositiveInt = 100
    """Steps between validations."""
    save_strategy: Literal["steps", "epoch", "steps_and_epoch", "no"] = "steps"
    """When checkpoints are written: every save_steps, at the end of each epoch, both, or neither. The last step is always saved."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    save_total_limit: PositiveInt | None = 3
    """Newest checkpoints kept; the best one is kept on top of them. null keeps all."""
    save_format: Literal["consolidated", "sharded"] = "consolidated"
    """With fsdp2, who writes: rank 0 gathers all in its host's memory, or each rank its share. Both go on with any backend and number of ranks."""
    async_save: bool = False
    """Go on training while a checkpoint is being written from a copy in the host's memory; one at a time."""
    early_stopping_patience: PositiveInt | None = None
    """Validations in a row without a better metric after which the run ends."""
    metric_for_best_model: str = "loss"
    """loss: the mean over tasks of their validation losses; or loss/<task> for one of them."""
    resume_from_checkpoint: PathOrSwitch = True
    """true goes on from the newest checkpoint of output_dir if there is one; false starts anew; or a checkpoint folder."""
    logging_steps: PositiveInt = 1
    """Steps between records in metrics.jsonl, console and TensorBoard."""
    logging_dir: PathText | None = None
    """TensorBoard folder; default <output_dir>/tensorboard."""
    report_to: Annotated[tuple[Literal["tensorboard"], ...], BeforeValidator(_one_or_many)] = ("tensorboard",)
    """Loggers beside console and metrics.jsonl; [] for none."""
    dataloader_num_workers: NonNegativeInt = 0
    """Processes that prepare batches ahead; 0 prepares them in the training process."""

    @field_validator("warmup_steps")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value >= 1 and value != math.floor(value):
            raise ValueError(f"{value} is neither a whole number of steps nor a share below 1")
        return value


def _named(value: Any) -> Any:
    """`balancer: coba` is `balancer: {name: coba}`."""
    return {"name": value} if isinstance(value, str) else value


def _task_list(value: Any) -> Any:
    """`{tests: data/tests}` and `{tests: {path: data/tests, weight: 2}}` are lists of named tasks."""
    if not isinstance(value, dict):
        return value
    return [
        {"name": name, **({"path": task} if isinstance(task, str) else task if isinstance(task, dict) else {})}
        for name, task in value.items()
    ]


class RunConfig(Section):
    """All of a run."""

    model: Annotated[
        ModelConfig, BeforeValidator(lambda value: {"model_name_or_path": value} if isinstance(value, str) else value)
    ]
    """Base model."""
    adapter: Annotated[
        AdapterConfig, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)
    ] = AdapterConfig()
    """Trained weights."""
    tasks: Annotated[tuple[TaskConfig, ...], BeforeValidator(_task_list), Field(min_length=1)]
    """The tasks, in the order of every table: a list, or a mapping from name to folder or fields."""
    data: DataConfig = DataConfig()
    """From records to rows."""
    loss: LossConfig = LossConfig()
    """The objective."""
    balancer: Annotated[BalancerConfig, BeforeValidator(_named)] = BalancerConfig()
    """Task weights over time."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    backend: Annotated[BackendConfig, BeforeValidator(_named)] = BackendConfig()
    """What carries the training."""
    output_dir: PathText
    """Folder of the run: resolved config, metrics, checkpoints, report."""

    @model_validator(mode="after")
    def _tasks_fit(self) -> "RunConfig":
        names = [task.name for task in self.tasks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"tasks: two tasks are named {', '.join(doubled)}")
        if not any(task.weight > 0 for task in self.tasks):
            raise ValueError("tasks: at least one weight must be above 0")
        if self.data.sampling == "weights" and not any(task.sampling_weight for task in self.tasks):
            raise ValueError("data.sampling: weights needs a sampling_weight above 0 in at least one task")
        return self

    @model_validator(mode="after")
    def _quantised_base_can_train(self) -> "RunConfig":
        bits, adapter = self.model.quantization, self.adapter
        if bits and adapter.type == "full":
            raise ValueError(
                f"model.quantization: weights held in {bits[0]} bits are frozen and cannot be trained themselves. Set adapter.type: "
                "lora, or remove model.quantization"
            )
        if bits == "8bit" and adapter.use_dora:
            raise ValueError(
                "adapter.use_dora: DoRA needs the norms of the base's weights, which 8-bit layers do not give. Set "
                "model.quantization: 4bit, or adapter.use_dora: false"
            )
        return self

    @model_validator(mode="after")
    def _rows_can_be_shared(self) -> "RunConfig":
        if self.backend.context_parallel_size == 1:
            return self
        refused = [
            (
                self.backend.name not in ("auto", "ddp", "fsdp2"),
                f"backend.name: {self.backend.name} does not. Set ddp or fsdp2",
            ),
            (
                self.model.attn_implementation not in ("auto", "segments", "varlen"),
                f"model.attn_implementation: {self.model.attn_implementation} does not. Set auto, segments or varlen",
            ),
            (
                self.train.torch_compile,
                "train.torch_compile: compiled layers do not, as far as is known. Set it to false",
            ),
        ]
        problems = [problem for applies, problem in refused if applies]
        if problems:
            raise ValueError(
                "backend.context_parallel_size: not everything can run slices of rows. " + ". ".join(problems)
            )
        return self

    @model_validator(mode="after")
    def _validation_runs_where_it_is_needed(self) -> "RunConfig":
        users = [
            (
                self.train.early_stopping_patience is not None,
                "train.early_stopping_patience: counts validations without a better metric",
            ),
            (
                self.balancer.name == "coba" and self.balancer.variant == "released",
                "balancer.variant: released divides by the losses of the validation before the first step",
            ),
        ]
        problems = [
            f"{user}, but train.eval_strategy is no. Set it to steps or epoch" for applies, user in users if applies
        ]
        if self.train.eval_strategy == "no" and problems:
            raise ValueError(". ".join(problems))
        return self

    @model_validator(mode="after")
    def _metric_exists(self) -> "RunConfig":
        known = ["loss", *(f"loss/{task.name}" for task in self.tasks)]
        metric = self.train.metric_for_best_model
        if metric not in known:
            raise ValueError(f"train.metric_for_best_model: unknown metric '{metric}'.{did_you_mean(metric, known)}")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in their order everywhere."""
        return tuple(task.name for task in self.tasks)

    @property
    def output_path(self) -> Path:
        """output_dir as a path."""
        return Path(self.output_dir).expanduser()
