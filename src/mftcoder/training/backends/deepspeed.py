"""ZeRO: DeepSpeed shards gradients and moments over the ranks (stage 2), and also the weights (stage 3). Uses `deepspeed.initialize`.

DeepSpeed averages gradients over ranks and counts micro-batches. Here each objective is multiplied by the number of ranks, and a step
ends when the optimizer is called, so gradients are sums. Each forward pass with its loss runs as one module inside DeepSpeed's hooks,
so that stage 3 keeps embedding and head gathered while the cross entropy uses them. Trained weights have float32 masters.
Checkpoints are gathered on rank 0 in the layout of one device.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backends.base import Decoder, NamedParameters, WrittenByRank0, refused_over_shards
from mftcoder.training.backends.deepspeed_optimizer import ZeroAdamW
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.optimizer import Halt, Optimizer, adamw
from mftcoder.training.sharded_state import trained_weights

BUCKET_ELEMENTS = 1 << 26  # gradients summed in one message: 256 MiB of float32
FORMATS = {"float32": "fp32", "bfloat16": "bf16"}


class _ZeroBackend(WrittenByRank0):
    """The common part of both stages."""

    lockstep = True
    name: str
    stage: int
    otherwise: str
    """The backend to use instead if this one is not available."""

    def __init__(self, config: BackendConfig):
        self.config = config
        self.group = ProcessGroup(config)
        self.device = self.load_device = self.group.device
        self._engine: Any = None
        self._optimizer: ZeroAdamW | None = None
        self._forward_pass = _ForwardPass()

    def check(self, config: RunConfig) -> None:
        """ConfigError if DeepSpeed is not installed, and for options that it does not support."""
        others = [
            (config.train.torch_compile is True, "train.torch_compile: compiled layers under DeepSpeed's hooks"),
            (
                config.model.quantization == "4bit-fp8",
                "model.quantization: 4bit-fp8 multiplies in layers without DeepSpeed's hooks",
            ),
            (self.config.context_parallel_size > 1, "backend.context_parallel_size: ranks that share rows"),
        ]
        problems = refused_over_shards(config, self.name, others)
        if importlib.util.find_spec("deepspeed") is None:
            problems.append(
                f"backend.name: {self.name} needs DeepSpeed, which is not installed: pip install 'mftcoder[deepspeed]'. "
                f"Or use {self.otherwise}."
            )
        if problems:
            raise ConfigError(*problems)

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Give the model to DeepSpeed, with the optimizer of the trained weights."""
        deepspeed = _deepspeed(self.device)
        trained = [(name, weight) for name, weight in model.module.named_parameters() if weight.requires_grad]
        inner: Any = adamw(trained, config)
        by_index = [weight for group in inner.param_groups for weight in group["params"]]
        layout = inner.state_dict()
        self._forward_pass.module = model.module
        self._engine, *_ = deepspeed.initialize(
            model=self._forward_pass,
            optimizer=inner,
            config=self._settings(model.causal_lm, config),
            dist_init_required=False,
        )
        self._optimizer = ZeroAdamW(
            self._engine,
            inner,
            parameters=[weight for _, weight in trained],
            by_index=by_index,
            layout=layout,
            low_precision=model.causal_lm.dtype != torch.float32,
            halt=Halt(config),
        )
        model.run_forward = self._run_forward
        model.device = self.device

    def _settings(self, causal_lm: Any, config: TrainConfig) -> dict[str, Any]:
        offload = {"optimizer": ("optimizer",), "all": ("optimizer", "param")}.get(self.config.offload, ())
        return {
            "train_micro_batch_size_per_gpu": 1,  # required, but not used
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": config.max_grad_norm or 0.0,
            "bf16": {"enabled": causal_lm.dtype == torch.bfloat16, "check_grad_overflow": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": FORMATS[self.config.reduce_dtype],
            "zero_allow_untested_optimizer": True,  # torch's AdamW, on the host too: the same update as in the other backends
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": False,  # does not work if the loop decides where a step ends
                "reduce_bucket_size": BUCKET_ELEMENTS,
                # Norms and other small weights are not sharded.
                "stage3_param_persistence_threshold": 10 * causal_lm.config.get_text_config().hidden_size,
                **{f"offload_{part}": {"device": "cpu"} for part in offload},
            },
        }

    def _run_forward(self, forward_pass: Callable[[], Tensor]) -> Tensor:
        self._forward_pass.action = forward_pass
        try:
            outcome: Tensor = self._engine()
        finally:
            self._forward_pass.action = None
        return outcome

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """The optimizer that `place` gave to DeepSpeed."""
        assert self._optimizer is not None
        return self._optimizer


class Zero2Backend(_ZeroBackend):
    """The whole model on every rank; gradients, masters and moments are sharded."""

    name, stage, otherwise = "deepspeed_zero2", 2, "ddp"


class Zero3Backend(_ZeroBackend):
    """Weights, gradients, masters and moments are sharded."""

    name, stage, otherwise = "deepspeed_zero3", 3, "fsdp2"

    def __init__(self, config: BackendConfig):
        super().__init__(config)
        # Weights are moved to the device one by one, so the whole model need not fit there.
        self.load_device = torch.device("cpu")

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Give the model to DeepSpeed, which learns which weights a pass uses outside their own module: those of the head.

        It would learn that from the first pass with a loss. If passes without one came before (the check of shared prompts), it expects
        other weights than the second pass asks for, and raises an error.
        """
        super().place(model, config)
        from deepspeed.runtime.zero import register_external_parameter

        register_external_parameter(self._forward_pass, model.causal_lm.get_output_embeddings().weight)

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        """The weights of a checkpoint in the model's dtype, on rank 0."""
        from deepspeed.runtime.zero import GatheredParameters

        weights = {}
        for name, weight in trained_weights(module).items():
            with GatheredParameters(weight) if isinstance(weight, nn.Parameter) else nullcontext():
                weights[name] = weight.detach().cpu().clone() if self.group.rank == 0 else torch.empty(0)
        return weights


class _ForwardPass(nn.Module):
    """A module whose forward is any forward pass of the model, so that DeepSpeed's hooks run around it."""

    module: nn.Module
    action: Callable[[], Tensor] | None = None

    def forward(self) -> Tensor:
        assert self.action is not None
        return self.action()


def _deepspeed(device: torch.device) -> Any:
    """The package, imported after the environment variables that it reads are set."""
    os.environ.setdefault("LOCAL_RANK", "0")  # missing without a launcher, but DeepSpeed requires it
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # torch 2.13 renames two collectives that deepspeed 0.19.8 calls.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    import deepspeed

    if device.type == "cpu":
        # Otherwise it runs compilers to find out what is supported, and builds what only inference uses.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
