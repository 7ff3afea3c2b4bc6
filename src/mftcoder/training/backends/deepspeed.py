"""ZeRO: DeepSpeed shards gradients and moments over the ranks (stage 2), and also the weights (stage 3). Uses `deepspeed.initialize`.

DeepSpeed averages gradients over ranks and counts micro-batches. Here each objective is multiplied by the number of ranks, and a step
ends when the optimizer is called, so gradients are sums. Each forward pass with its loss runs as one module inside DeepSpeed's hooks,
so that stage 3 keeps embedding and head gathered while the cross entropy uses them. Trained weights have float32 masters.
Checkpoints are gathered on rank 0 in the layout of one device, so that every backend can continue from every checkpoint.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backends.base import Decoder, NamedParameters, WrittenByRank0, refused_over_shards
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.optimizer import Halt, Optimizer, adamw
from mftcoder.training.sharded_state import allocate_full, trained_weights

BUCKET_ELEMENTS = 1 << 26  # gradients summed in one message: 256 MiB of float32
MOMENTS = ("exp_avg", "exp_avg_sq")
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


class ZeroAdamW:
    """MasterAdamW on a rank's shards: flat pieces of groups of weights (stage 2) or of each weight (stage 3)."""

    def __init__(
        self,
        engine: Any,
        adamw: Any,
        *,
        parameters: Sequence[Any],
        by_index: Sequence[Any],
        layout: dict[str, Any],
        low_precision: bool,
        halt: Halt,
    ):
        """The engine steps `adamw`. `by_index` and `layout`: its weights and its state_dict() before sharding."""
        self._engine, self._adamw = engine, adamw
        self._parameters, self._by_index, self._layout = parameters, by_index, layout
        self._low_precision, self._halt = low_precision, halt
        # DeepSpeed 0.19.8 ties weights to moments after its first group's first step, when the other groups have none yet.
        for piece in self._pieces:
            adamw.state[piece] = {
                "step": torch.zeros((), device=piece.device),
                **{name: torch.zeros_like(piece) for name in MOMENTS},
            }
        if not engine.zero_optimization_partition_weights():
            engine.optimizer._lazy_init_hp_params_optimizer_state()

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Run DeepSpeed's backward pass, which averages gradients over ranks; multiplying by the ranks makes that a sum."""
        self._engine.backward(objective * self._engine.world_size)

    def sum_gradients(self) -> None:
        """Do nothing: each pass has summed its gradients."""

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """See `Optimizer.step`. DeepSpeed itself skips the update if the norm is not finite."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        device = self._pieces[0].device  # offloaded pieces lie on the host; copies there wait
        if loss_sums is not None:
            self._adamw.found_inf = self._halt.after(loss_sums.to(device))
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        self._halt.after(norm.to(device))
        return norm

    @property
    def _pieces(self) -> list[Tensor]:
        """The float32 weights that this rank updates, the keys of the optimizer's state."""
        zero = self._engine.optimizer
        if self._engine.zero_optimization_partition_weights():
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups)

    def state_dict(self) -> dict[str, Any]:
        """Moments and, for a low-precision model, masters; complete on rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        step = self._adamw.state[self._pieces[0]]["step"].cpu()
        moments = {
            index: {
                "step": step.clone(),
                **{name: self._kept(safe_get_full_optimizer_state(parameter, name)) for name in MOMENTS},
            }
            for index, parameter in enumerate(self._by_index)
        }
        masters = [
            self._kept(safe_get_full_fp32_param(parameter)) for parameter in self._parameters if self._low_precision
        ]
        return {"adamw": {**self._layout, "state": moments}, "masters": masters}

    def _kept(self, whole: Tensor) -> Tensor:
        """A copy on the CPU of rank 0, an empty tensor on other ranks."""
        return whole.cpu().clone() if self._engine.global_rank == 0 else whole.new_empty(0, device="cpu")

    def allocate(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        return allocate_full(name, size, dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's shards of a full state dict."""
        moments = state["adamw"]["state"]
        for piece in self._pieces if moments else ():
            self._adamw.state[piece]["step"].fill_(float(moments[0]["step"]))
        for index, of_parameter in moments.items():
            for name in MOMENTS:
                self._set_shard(self._by_index[index], of_parameter[name], name)
        if state["masters"]:
            for parameter, master in zip(self._parameters, state["masters"], strict=True):
                self._set_shard(parameter, master, None)

    def _set_shard(self, parameter: Any, whole: Tensor, moment: str | None) -> None:
        """Put this rank's shard of `whole` into the moment of that name, or into the master weight."""
        from deepspeed import utils

        if not hasattr(parameter, "ds_tensor"):
            if moment:
                utils.safe_set_full_optimizer_state(parameter, whole, moment)
            else:
                utils.safe_set_full_fp32_param(parameter, whole)
            return
        # safe_set_full_* of stage 3 fails for a weight whose size is not a multiple of the ranks (deepspeed 0.19.8).
        size = parameter.ds_tensor.numel()
        padded = torch.zeros(size * self._engine.world_size, dtype=whole.dtype)
        padded[: whole.numel()] = whole.flatten()
        shard = padded[size * self._engine.global_rank :][:size]
        if moment:
            utils.safe_set_local_optimizer_state(parameter, shard, moment)
        else:
            utils.safe_set_local_fp32_param(parameter, shard)


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
