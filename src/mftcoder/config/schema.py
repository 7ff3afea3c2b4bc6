"""The config of a run: nested, frozen, validated. Unknown keys are refused. The sentence under a field is its documentation.

Field names are those of Hugging Face, LLaMA-Factory and axolotl configs where one exists. Reading files is left to `load.py`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from mftcoder.config.backend import BackendConfig
from mftcoder.config.balancer import BalancerConfig, read_balancer
from mftcoder.config.data import DataConfig, TaskConfig, task_list
from mftcoder.config.kinds import GrpoKind
from mftcoder.config.loss import LossConfig, check_loss
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
    WholeOrFraction,
    one_or_many,
)
from mftcoder.registry import did_you_mean

IN_BITS = {"4bit": "4 bits", "8bit": "8 bits", "fp8": "fp8", "4bit-fp8": "4 bits"}


class ModelConfig(Section):
    """The base model, and how it is held in memory."""

    model_name_or_path: PathText
    """A Hub id, a local folder in Hugging Face layout, or a .gguf file."""
    tokenizer_name_or_path: PathText | None = None
    """Where the tokenizer comes from, if not from the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of weights and activations."""
    attn_implementation: Literal["auto", "segments", "varlen", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention. auto takes the fastest that isolates packed samples with this machine and model, FlashAttention 3 or 4 included if one is
    installed and the GPU supports it. varlen is FlashAttention 2 over the samples of packed rows."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you trust the author."""
    use_safetensors: bool = True
    """Refuse pickled weights, which can run code when they are loaded."""
    quantization: Literal["4bit", "8bit", "fp8", "4bit-fp8"] | None = None
    """How the frozen base weights below LoRA are held. 4bit (NF4 with double quantization) and 8bit (LLM.int8) multiply in `dtype` (QLoRA;
    they need the extra `qlora`). fp8 (e4m3, one byte a weight) multiplies in fp8, which is faster on newer GPUs. 4bit-fp8 holds NF4 and
    multiplies in fp8."""
    modules_to_not_convert: Strings = ()
    """Linear layers that quantization and train.fp8_recipe leave in `dtype`, by a part of their path: down_proj, mlp, layers.0."""


class AdapterConfig(Section):
    """The weights that are trained: all of them, or a low-rank addition."""

    type: Literal["full", "lora"] = "lora"
    """full trains every weight. lora trains low-rank additions and does not change the base model."""
    lora_rank: PositiveInt = 16
    """Rank of the low-rank addition."""
    lora_alpha: PositiveFloat = 32.0
    """The addition is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.0
    """Dropout of the addition's input."""
    lora_target: Strings = ("all-linear",)
    """Names of the linear layers that get an addition, or all-linear."""
    train_embeddings: bool = False
    """Train the embedding and the output head themselves beside the LoRA weights (peft's modules_to_save). If they share one weight, they
    still do. For new vocabulary or another language; it takes the memory of full fine-tuning for these two."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilized LoRA)."""
    use_dora: bool = False
    """Train magnitude and direction separately (DoRA)."""
    peft_forward: bool = False
    """Compute every layer with peft's own forward, for comparison. It is slower. Layers with dropout or DoRA always use it."""


def _recomputed(value: Any) -> Any:
    if isinstance(value, bool) or value in ("auto", "selective") or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f"{value!r} is not auto, selective, true, false, or a fraction of the layers between 0 and 1")


Recomputed = Annotated[
    Literal["auto", "selective"] | bool | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_recomputed)
]


class TrainConfig(Section):
    """The training loop: steps, optimizer, schedule, validation, checkpoints, logs."""

    num_train_epochs: PositiveFloat = 3.0
    """Passes over the data; used if max_steps is not given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps. If given, num_train_epochs has no effect."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows of a micro-batch on one device."""
    per_device_eval_batch_size: PositiveInt | None = None
    """Rows of a validation batch; null: as in training."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of a step. How a step is split does not change its result."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the schedule."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    """Shape of the schedule after the warm-up. warmup_stable_decay (WSD) stays at learning_rate, and falls linearly to min_lr in the last
    decay_steps."""
    decay_steps: Annotated[PositiveFloat, WholeOrFraction] | None = None
    """Steps in which warmup_stable_decay falls; null: 0.1. A number below 1 is a fraction of all steps."""
    warmup_steps: Annotated[NonNegativeFloat, WholeOrFraction] = 0.0
    """Steps of linear warm-up. A number below 1 is a fraction of all steps."""
    optim: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """adamw: AdamW with float32 moments. adamw_8bit: AdamW with 8-bit moments (bitsandbytes), which take a quarter of the memory, wait for
    the device once a step, and change the numbers. auto: adamw, but adamw_8bit if the run fits on a GPU in no other way; a line reports it."""
    master_weights: Literal["float32", "stochastic_rounding"] = "float32"
    """Keep a float32 copy of each bfloat16 weight, or keep none and round each update up or down at random, which is right on average."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices. Norms and biases have none."""
    adam_beta1: Fraction = 0.9
    """Decay of the first moment."""
    adam_beta2: Fraction = 0.95
    """Decay of the second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the square root of the second moment."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients with a larger norm are scaled down to it; null: no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is nan or infinite changes no weight. stop: later steps change none either, and the run ends. skip: the
    step is counted, and the run goes on. On a GPU such a step is found when results are read: at the next record (logging_steps), validation
    or checkpoint. With skip its sample is then searched with the current weights."""
    gradient_checkpointing: Recomputed = "auto"
    """Recomputation: activations that the backward pass computes again instead of keeping them, which saves memory and costs time. false:
    none. selective: norms, SwiGLU and other operations between matrix products and attention. A number between 0 and 1: this fraction of
    the layers in full, the others selectively. true: all layers in full. auto: on a GPU the first of these that fits by an estimate
    (`mft validate` prints it), on the CPU false. The result does not change."""
    sync_each_batch: Literal["auto"] | bool = "auto"
    """fsdp2: sum gradients over ranks after each micro-batch (true) or once a step (false). Once a step sends less but holds the gradients of
    the whole model on every rank. auto: once a step, but on a GPU only if it fits by an estimate (`mft validate` prints it)."""
    torch_compile: Literal["auto"] | bool = "auto"
    """Compile the decoder layers, which is faster after about a minute of compiling. auto: on a GPU that holds the whole model, if the run allows it."""
    deterministic: bool = False
    """Use only GPU kernels that give the same bits each time, so a resumed run equals an uninterrupted one exactly. This is slower. CPUs always do so."""
    fp8_recipe: Literal["tensorwise", "rowwise"] | None = None
    """Full fine-tuning with the decoder's matrix products in fp8, through torchao: one scale for each tensor (tensorwise, faster) or for each
    row (rowwise, more exact). Needs the extra `fp8`, bfloat16 and a newer GPU, and is faster only with torch_compile. For LoRA use
    model.quantization: fp8."""
    seed: NonNegativeInt = 42
    """Seed of the data order, of new weights and of dropout."""
    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When validation runs. Unless this is no, it also runs before the first step and after the last one."""
    eval_steps: PositiveInt = 100
    """Steps between validations."""
    save_strategy: Literal["steps", "epoch", "steps_and_epoch", "no"] = "steps"
    """When checkpoints are written: every save_steps, at the end of each epoch, both, or neither. The last step is always saved."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    save_total_limit: PositiveInt | None = 3
    """Number of newest checkpoints to keep. The best one is kept in addition. null keeps all."""
    save_format: Literal["consolidated", "sharded"] = "consolidated"
    """fsdp2: rank 0 gathers the full state dict in its host's memory and writes it (consolidated), or each rank writes its shard (sharded). A run
    continues from both with any backend and any number of ranks."""
    async_save: bool = False
    """Train on while a checkpoint is written from a copy in the host's memory. One checkpoint is written at a time."""
    early_stopping_patience: PositiveInt | None = None
    """The run ends after this many validations in a row without a better metric."""
    metric_for_best_model: str = "loss"
    """loss: the mean of the tasks' validation losses. loss/<task>: the validation loss of one task."""
    resume_from_checkpoint: PathOrSwitch = True
    """true: continue from the newest checkpoint of output_dir if there is one. false: start anew. Or the path of a checkpoint folder."""
    logging_steps: PositiveInt = 1
    """Steps between records in metrics.jsonl, console and TensorBoard."""
    logging_dir: PathText | None = None
    """TensorBoard folder; null: <output_dir>/tensorboard."""
    report_to: Annotated[tuple[Literal["tensorboard"], ...], BeforeValidator(one_or_many)] = ("tensorboard",)
    """Loggers in addition to console and metrics.jsonl; [] for none."""
    dataloader_num_workers: NonNegativeInt = 0
    """Processes that prepare batches in advance; 0: the training process prepares them."""

    @model_validator(mode="after")
    def _decay_is_used(self) -> "TrainConfig":
        if self.decay_steps is not None and self.lr_scheduler_type != "warmup_stable_decay":
            raise ValueError(
                f"decay_steps: is for lr_scheduler_type: warmup_stable_decay; {self.lr_scheduler_type} falls in all steps or in "
                "none. Leave it out"
            )
        return self


def _named(value: Any) -> Any:
    """`backend: ddp` is `backend: {name: ddp}`."""
    return {"name": value} if isinstance(value, str) else value


class RunConfig(Section):
    """The whole config."""

    model: Annotated[
        ModelConfig, BeforeValidator(lambda value: {"model_name_or_path": value} if isinstance(value, str) else value)
    ]
    """Base model."""
    adapter: Annotated[
        AdapterConfig, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)
    ] = AdapterConfig()
    """Trained weights."""
    tasks: Annotated[tuple[TaskConfig, ...], BeforeValidator(task_list), Field(min_length=1)]
    """The tasks, in the order of all tables: a list, a mapping from name to folder or fields, or a folder that `mft data curate` made."""
    data: DataConfig = DataConfig()
    """From records to rows."""
    loss: LossConfig = LossConfig()
    """The objective."""
    balancer: Annotated[SerializeAsAny[BalancerConfig], BeforeValidator(read_balancer)] = BalancerConfig()
    """Task weights over time."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    backend: Annotated[BackendConfig, BeforeValidator(_named)] = BackendConfig()
    """The engine that carries the training."""
    output_dir: PathText
    """Folder of the run: resolved config, metrics, checkpoints, report."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        self._tasks_fit()
        check_loss(self.loss, {task.name: task.kind for task in self.tasks})
        self._divergence_has_an_untrained_model()
        self._quantized_base_can_train()
        self._fp8_can_train()
        self._optimizer_fits()
        self._gradients_can_wait()
        self._rows_can_be_shared()
        self._validation_runs_where_it_is_needed()
        self._metric_exists()
        return self

    def _tasks_fit(self) -> None:
        names = [task.name for task in self.tasks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"tasks: two tasks are named {', '.join(doubled)}")
        if not any(task.weight > 0 for task in self.tasks):
            raise ValueError("tasks: at least one weight must be above 0")
        if self.data.sampling == "weights" and not any(task.sampling_weight for task in self.tasks):
            raise ValueError("data.sampling: weights needs a sampling_weight above 0 in at least one task")

    def _divergence_has_an_untrained_model(self) -> None:
        named = [task.name for task in self.tasks if isinstance(task.kind, GrpoKind) and task.kind.beta > 0]
        if named and self.adapter.type == "full":
            raise ValueError(
                f"tasks.{named[0]}.kind.beta: needs the untrained model, which LoRA keeps below its weights. Set adapter.type: lora, or "
                "beta: 0"
            )

    def _quantized_base_can_train(self) -> None:
        held, adapter = self.model.quantization, self.adapter
        if held is None:
            return
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

    def _fp8_can_train(self) -> None:
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

    def _optimizer_fits(self) -> None:
        if self.train.master_weights == "float32":
            return
        if self.train.optim == "adamw_8bit":
            raise ValueError(
                "train.master_weights: stochastic_rounding works with train.optim: adamw only. Choose one of the two"
            )
        if self.model.dtype != "bfloat16":
            raise ValueError(
                "train.master_weights: stochastic_rounding is for bfloat16 weights; float32 ones need no copy. Set float32"
            )

    def _gradients_can_wait(self) -> None:
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

    def _rows_can_be_shared(self) -> None:
        if self.backend.context_parallel_size == 1:
            return
        problems, engine, attention = [], self.backend.name, self.model.attn_implementation
        if engine not in ("auto", "ddp", "fsdp2"):
            problems.append(f"backend.name: {engine} does not. Set ddp or fsdp2")
        if attention not in ("auto", "segments", "varlen"):
            problems.append(f"model.attn_implementation: {attention} does not. Set auto, segments or varlen")
        if self.train.torch_compile is True:
            problems.append("train.torch_compile: compiled layers do not, as far as is known. Set it to false")
        if problems:
            raise ValueError(
                "backend.context_parallel_size: not everything can run slices of rows. " + ". ".join(problems)
            )

    def _validation_runs_where_it_is_needed(self) -> None:
        users = []
        if self.train.early_stopping_patience is not None:
            users.append("train.early_stopping_patience: counts validations without a better metric")
        if self.balancer.first_validation_user is not None:
            users.append(f"balancer.{self.balancer.first_validation_user}")
        if self.train.eval_strategy == "no" and users:
            advice = ", but train.eval_strategy is no. Set it to steps or epoch"
            raise ValueError(". ".join(user + advice for user in users))

    def _metric_exists(self) -> None:
        known = ["loss", *(f"loss/{task.name}" for task in self.tasks)]
        metric = self.train.metric_for_best_model
        if metric not in known:
            raise ValueError(f"train.metric_for_best_model: unknown metric '{metric}'.{did_you_mean(metric, known)}")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir).expanduser()
