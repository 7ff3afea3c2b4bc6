"""What a run is: nested, frozen, validated. Unknown keys are refused; the sentence under a field is its documentation.

Names are the ones people already type in Hugging Face, LLaMA-Factory and axolotl configs wherever one exists. Nothing here
reads a file or knows a library of models: `load.py` reads, the rooms use.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from mftcoder.config.backend import BackendConfig
from mftcoder.config.balancer import BalancerConfig, read_balancer
from mftcoder.config.data import DataConfig, TaskConfig
from mftcoder.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PathOrSwitch,
    PathText,
    PositiveFloat,
    PositiveInt,
    Section,
    Strings,
    one_or_many,
)
from mftcoder.registry import did_you_mean

IN_BITS = {"4bit": "4 bits", "8bit": "8 bits", "fp8": "fp8", "4bit-fp8": "4 bits"}


class ModelConfig(Section):
    """Which base model and how it is held in memory."""

    model_name_or_path: PathText
    """A Hub id, a local folder in Hugging Face layout, or a .gguf file."""
    tokenizer_name_or_path: PathText | None = None
    """Where the tokenizer comes from, if not from the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of weights and activations."""
    attn_implementation: Literal["auto", "segments", "varlen", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention: auto picks the fastest that isolates packed samples on this machine and this model, with FlashAttention 3 or 4 where
    one is installed and the GPU has it; varlen is FlashAttention 2 over the samples of packed rows."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you know the author."""
    use_safetensors: bool = True
    """Refuse pickled weights, which can run code when loaded."""
    quantization: Literal["4bit", "8bit", "fp8", "4bit-fp8"] | None = None
    """How the frozen base weights below LoRA are held: in 4 bits (NF4, double quantisation) or 8 (LLM.int8), multiplied in `dtype` (QLoRA, needs the extra `qlora`); in fp8 (e4m3, a byte a weight), multiplied in fp8, which is faster on newer GPUs; 4bit-fp8 holds NF4 and multiplies in fp8."""


class AdapterConfig(Section):
    """Which weights are trained: all of them, or a low-rank addition."""

    type: Literal["full", "lora"] = "lora"
    """full trains every weight; lora trains low-rank additions and leaves the base as it is."""
    lora_rank: PositiveInt = 16
    """Rank of the low-rank addition."""
    lora_alpha: PositiveFloat = 32.0
    """The addition is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.0
    """Dropout in front of the addition."""
    lora_target: Strings = ("all-linear",)
    """Names of the linear layers that get one, or all-linear."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA)."""
    peft_forward: bool = False
    """Compute every layer with peft's own forward, as layers with dropout or DoRA always are: slower, for comparison."""


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


def _recomputed(value: Any) -> Any:
    if isinstance(value, bool) or value in ("auto", "selective") or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f"{value!r} is none of auto, selective, true, false, or a share of the layers between 0 and 1")


Recomputed = Annotated[
    Literal["auto", "selective"] | bool | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_recomputed)
]


class TrainConfig(Section):
    """The loop: steps, optimizer, schedule, evaluation, checkpoints, logs."""

    num_train_epochs: PositiveFloat = 3.0
    """Passes over the data, if max_steps is not given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; wins over num_train_epochs."""
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
    optim: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """Optimizer: AdamW with float32 moments (adamw), or with 8-bit moments (adamw_8bit, bitsandbytes): a quarter of their memory, one wait
    for the device a step, and other numbers. auto: adamw; adamw_8bit where a GPU has room for the run no other way, which a line says."""
    master_weights: Literal["float32", "stochastic_rounding"] = "float32"
    """A float32 copy of each bfloat16 weight, or none: the update is then rounded up or down at random, right on average."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    adam_beta1: Fraction = 0.9
    """Decay of the first moment."""
    adam_beta2: Fraction = 0.95
    """Decay of the second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; null for no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step with a nan or infinite loss or gradient changes nothing. stop: nor does any later one, and the run ends; skip: it is
    counted, and the run goes on. On a GPU it is found when results are read, at the next record (logging_steps), validation or
    checkpoint; with skip its sample is then looked for with the weights of that moment."""
    gradient_checkpointing: Recomputed = "auto"
    """What the backward pass computes again instead of keeping it: less memory, more time. false: nothing; selective: norms, SwiGLU and
    what else lies between matrix products and attention; a number between 0 and 1: that share of the layers wholly, the others
    selectively; true: all layers. auto: on a GPU the first of these that has room by an estimate (`mft validate` prints it), on the
    CPU false. What is computed stays the same."""
    sync_each_batch: Literal["auto"] | bool = "auto"
    """fsdp2: sum gradients over ranks after each micro-batch (true), or once a step (false), which sends less but holds the gradients of the
    whole model on every rank. auto: on a GPU once a step if there is room by an estimate (`mft validate` prints it), on the CPU once a step."""
    torch_compile: Literal["auto"] | bool = "auto"
    """Compile the decoder layers: faster after a minute of compiling. auto: on a GPU that holds the whole model, where it can be done."""
    deterministic: bool = False
    """Use only GPU kernels that give the same bits each time, so that a resumed run repeats an uninterrupted one exactly: slower. CPUs always do."""
    fp8_recipe: Literal["tensorwise", "rowwise"] | None = None
    """Full fine-tuning with the decoder's matrix products in fp8 through torchao, with one scale a tensor (faster) or one a row (more
    exact); needs the extra `fp8`, bfloat16 and a newer GPU, and gains speed only with torch_compile. LoRA has model.quantization: fp8."""
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
    report_to: Annotated[tuple[Literal["tensorboard"], ...], BeforeValidator(one_or_many)] = ("tensorboard",)
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
    """`backend: ddp` is `backend: {name: ddp}`."""
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
    balancer: Annotated[SerializeAsAny[BalancerConfig], BeforeValidator(read_balancer)] = BalancerConfig()
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
        held, adapter = self.model.quantization, self.adapter
        if held is None:
            return self
        if adapter.type == "full":
            raise ValueError(
                f"model.quantization: weights held in {IN_BITS[held]} are frozen and cannot be trained themselves. Set "
                "adapter.type: lora, or remove model.quantization"
            )
        if held in ("8bit", "fp8") and adapter.use_dora:
            raise ValueError(
                f"adapter.use_dora: DoRA needs the norms of the base's weights, which layers in {IN_BITS[held]} do not give. Set "
                "model.quantization: 4bit, or adapter.use_dora: false"
            )
        if held in ("fp8", "4bit-fp8") and self.model.dtype != "bfloat16":
            raise ValueError(
                f"model.dtype: {self.model.dtype}: products in fp8 give bfloat16. Set bfloat16, or another model.quantization"
            )
        in_bfloat16 = {
            "adapter.use_dora": adapter.use_dora,
            "adapter.lora_dropout": adapter.lora_dropout > 0,
            "adapter.peft_forward": adapter.peft_forward,
            "adapter.lora_target (other than all-linear)": adapter.lora_target != ("all-linear",),
        }
        if held == "4bit-fp8" and any(in_bfloat16.values()):
            named = ", ".join(name for name, applies in in_bfloat16.items() if applies)
            raise ValueError(
                f"model.quantization: 4bit-fp8: with {named} layers multiply their 4-bit weights in bfloat16. Set 4bit or fp8, or "
                "leave that out"
            )
        return self

    @model_validator(mode="after")
    def _fp8_can_train(self) -> "RunConfig":
        recipe = self.train.fp8_recipe
        if recipe and self.adapter.type == "lora":
            raise ValueError(
                f"train.fp8_recipe: {recipe} is for full fine-tuning. With LoRA set model.quantization: fp8 instead, or "
                "adapter.type: full"
            )
        if recipe and self.model.dtype != "bfloat16":
            raise ValueError(
                f"model.dtype: {self.model.dtype}: train.fp8_recipe needs bfloat16. Set it, or remove the recipe"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> "RunConfig":
        if self.train.master_weights == "float32":
            return self
        if self.train.optim == "adamw_8bit":
            raise ValueError(
                "train.master_weights: stochastic_rounding works with train.optim: adamw only. Choose one of the two"
            )
        if self.model.dtype != "bfloat16":
            raise ValueError(
                "train.master_weights: stochastic_rounding is for bfloat16 weights; float32 ones need no copy. Set float32"
            )
        return self

    @model_validator(mode="after")
    def _gradients_can_wait(self) -> "RunConfig":
        backend, chosen = self.backend, self.train.sync_each_batch
        if chosen != "auto" and backend.name != "fsdp2":
            raise ValueError(
                f"train.sync_each_batch: is for backend fsdp2; {backend.name} leaves no choice. Leave it out"
            )
        if chosen is False and backend.reduce_dtype != "float32":
            raise ValueError(
                f"train.sync_each_batch: false would add micro-batches up in {backend.reduce_dtype}. Set "
                "backend.reduce_dtype: float32, or leave train.sync_each_batch out"
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
                self.train.torch_compile is True,
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
                self.balancer.first_validation_user is not None,
                f"balancer.{self.balancer.first_validation_user}",
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
