"""AdamW with decay groups, float32 master weights for low-precision parameters, and the learning rate as a function of the step.

The parameters have the model's dtype (fast products, no casts in the forward pass). If that is bfloat16, the optimizer keeps a
float32 copy of each, accumulates gradients in float32 and rounds the parameter from its copy after every step. So small updates
are not lost.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mftcoder.config.schema import TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.kernels.adamw import AdamWRule, AdamWTensors, adamw_in_torch
from mftcoder.kernels.limits import lack_of_triton
from mftcoder.training.sharded_state import allocate_full


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule down to min_lr at the last step."""
    warmup = warmup_steps(total_steps, config)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    if config.lr_scheduler_type == "warmup_stable_decay":
        falling = min(1.0, (total_steps - 1 - step) / decay_steps(total_steps, config))
    else:
        progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
        linear = config.lr_scheduler_type == "linear"
        falling = 1.0 - progress if linear else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr + (config.learning_rate - config.min_lr) * falling


def warmup_steps(total_steps: int, config: TrainConfig) -> int:
    """Number of warm-up steps; a value below 1 is a fraction of all steps, rounded up."""
    return _steps(config.warmup_steps, total_steps)


def decay_steps(total_steps: int, config: TrainConfig) -> int:
    """Number of steps in which `warmup_stable_decay` falls from learning_rate to min_lr."""
    return _steps(0.1 if config.decay_steps is None else config.decay_steps, total_steps)


def _steps(value: float, total_steps: int) -> int:
    return math.ceil(value * total_steps) if value < 1 else int(value)


def check_optimizer(config: TrainConfig) -> None:
    """ConfigError if the optimizer that the config names is not installed."""
    if config.optim == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.optim: adamw_8bit needs bitsandbytes, which is not installed: pip install 'mftcoder[qlora]', or use adamw."
        )


class Optimizer(Protocol):
    """The optimizer of a run, made by the backend. All ranks call each method except `backward` in the same order."""

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Add the objective's gradients to those of the step's earlier passes.

        `last`: this is the rank's last pass of the step, so sums over ranks may start during it. Backends whose ranks run in
        lockstep rely on it.
        """

    def sum_gradients(self) -> None:
        """Finish the sums of the gradients over ranks. Called after the passes and before `step`."""

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """Clip the gradients, update with learning rate `rate`, clear the gradients. Returns their norm before clipping.

        Nothing is updated if the norm or one of `loss_sums` is not finite. With train.on_nonfinite: stop, nothing is updated after
        that either, so the model is unchanged even if the host reads the result late.
        """

    def state_dict(self) -> dict[str, Any]:
        """The full state dict, in the layout of MasterAdamW; at least on rank 0."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()` of any backend. Every rank gets the full state dict, or the shards that it allocated."""

    def allocate(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a tensor of a sharded checkpoint (`ShardedState.optimizer`), to read it before `load_state_dict`."""


class Gradients(Protocol):
    """Collects the gradients of the trained weights from the backward passes for the update."""

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """See `Optimizer.backward`."""

    def sum_over_ranks(self) -> None:
        """See `Optimizer.sum_gradients`."""

    def take(self) -> list[Tensor | None]:
        """Each weight's gradient since the last call; None if no backward pass of any rank reached it."""


class MasterAdamW:
    """AdamW on float32 weights. A float32 parameter is its own master; others get a copy, except with stochastic rounding.

    On a GPU one kernel updates everything (kernels/adamw_triton.py); elsewhere torch's fused AdamW does, or bitsandbytes' one with
    8-bit moments. With several ranks, `gradients` collects the gradients, and `whole_norm` turns the norm of this rank's gradients
    into that of all.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: TrainConfig,
        *,
        gradients: Gradients | None = None,
        whole_norm: Callable[[Tensor], Tensor] | None = None,
    ):
        self._whole_norm = whole_norm
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in trained]
        stochastic = config.master_weights == "stochastic_rounding"
        on_gpu = all(parameter.is_cuda for parameter in self.parameters) and lack_of_triton() is None
        on_gpu = on_gpu and config.optim != "adamw_8bit"
        if on_gpu or stochastic:
            for parameter in self.parameters:
                parameter.data = parameter.data.contiguous()  # the kernel reads each weight row by row
        self.masters: list[Tensor] = [
            one if stochastic or one.dtype == torch.float32 else one.detach().float().requires_grad_(True)
            for one in self.parameters
        ]
        self._config = config
        self._halt = Halt(config)
        self._gradients = gradients or LocalGradients(self.parameters)
        self._adamw: Any = adamw([(n, m) for (n, _), m in zip(trained, self.masters, strict=True)], config)
        self._one_pass = OnePass(self._adamw, self.parameters, self.masters, config) if on_gpu or stochastic else None

    def backward(self, objective: Tensor, *, last: bool) -> None:
        self._gradients.backward(objective, last=last)

    def sum_gradients(self) -> None:
        self._gradients.sum_over_ranks()

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """See `Optimizer.step`. The host does not wait for the norm: the device decides whether to update (8-bit moments wait)."""
        gradients = self._gradients.take()
        norm = total_norm([gradient for gradient in gradients if gradient is not None])
        norm = self._whole_norm(norm) if self._whole_norm else norm
        skip = self._halt.after(norm, loss_sums)
        limit = self._config.max_grad_norm
        scale = torch.ones_like(norm) if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)
        if self._one_pass:
            self._one_pass.step(gradients, rate, scale, skip)
        else:
            self._step_in_torch(gradients, rate, scale, skip)
        return norm

    def _step_in_torch(self, gradients: list[Tensor | None], rate: float, scale: Tensor, skip: Tensor) -> None:
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.float()
        torch._foreach_mul_([master.grad for master in self.masters if master.grad is not None], scale)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if self._config.optim != "adamw_8bit":
            self._adamw.found_inf = skip  # as set by GradScaler: the fused kernel then changes nothing
            self._adamw.step()
        elif not skip:
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """The moments, and the masters that are copies."""
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        if self._one_pass:
            self._one_pass.count_steps()
        return {"adamw": self._adamw.state_dict(), "masters": [copy.detach() for copy in copies]}

    def allocate(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        return allocate_full(name, size, dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`, but keep this run's settings. The parameters themselves are restored by the checkpoint."""
        settings = [{name: group[name] for name in group if name != "params"} for group in self._adamw.param_groups]
        self._adamw.load_state_dict(state["adamw"])
        for group, own in zip(self._adamw.param_groups, settings, strict=True):
            group.update(own)  # torch restores the saved decay, betas and epsilon, but the config may have changed
        if self._one_pass:
            self._one_pass.take_moments(state["adamw"]["state"])
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        with torch.no_grad():
            for copy, saved in zip(copies, state["masters"], strict=True):
                copy.copy_(saved)


class LocalGradients:
    """The gradients of one rank. A low-precision weight keeps its first gradient unchanged, and adds further ones in float32."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._parameters = parameters
        self._kept: dict[int, Tensor] = {}
        for index, parameter in enumerate(parameters):
            if parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(partial(self._keep, index))

    def _keep(self, index: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        before = self._kept.get(index)
        self._kept[index] = parameter.grad if before is None else before.float().add_(parameter.grad)
        parameter.grad = None

    def backward(self, objective: Tensor, *, last: bool) -> None:
        objective.backward()

    def sum_over_ranks(self) -> None:
        """Do nothing: there is one rank."""

    def take(self) -> list[Tensor | None]:
        """Each parameter's gradient since the last call; None if no backward pass reached it."""
        found = [
            parameter.grad if parameter.dtype == torch.float32 else self._kept.get(index)
            for index, parameter in enumerate(self._parameters)
        ]
        self._kept.clear()
        for parameter in self._parameters:
            parameter.grad = None
        return found


class OnePass:
    """Updates all weights with our own kernel. The state is kept in a torch AdamW, so that checkpoints have its layout."""

    def __init__(self, adamw: Any, parameters: Sequence[Tensor], masters: Sequence[Tensor], config: TrainConfig):
        self._adamw, self._parameters, self._masters = adamw, parameters, masters
        stochastic = config.master_weights == "stochastic_rounding"
        self._rule = AdamWRule(
            config.adam_beta1, config.adam_beta2, config.adam_epsilon, stochastic_rounding=stochastic
        )
        self._seed = config.seed
        self.take_state()

    def take_state(self) -> None:
        """Take the state of the torch AdamW; weights without a state start from zero."""
        decay = {id(weight): group["weight_decay"] for group in self._adamw.param_groups for weight in group["params"]}
        tensors, steps = [], []
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            state = self._adamw.state[master]
            for name in ("exp_avg", "exp_avg_sq"):
                before = state.get(name)
                state[name] = torch.zeros_like(master, dtype=torch.float32) if before is None else before.float()
            steps.append(torch.as_tensor(state.get("step", 0.0)).float().cpu().reshape(()))
            tensors.append(
                AdamWTensors(
                    parameter.detach(), master.detach(), state["exp_avg"], state["exp_avg_sq"], decay[id(master)]
                )
            )
        self._tensors = tensors
        self._steps = torch.stack(steps).to(self._masters[0].device)
        self._steps_taken = int(self._steps.max())  # part of the seed of a step's rounding
        self._kernel = _kernel(tensors, self._rule)
        self.count_steps()

    def take_moments(self, saved: dict[int, dict[str, Any]]) -> None:
        """Restore saved moments in float32; torch would round them to the weights' dtype."""
        weights = [weight for group in self._adamw.param_groups for weight in group["params"]]
        for index, moments in saved.items():
            weight = weights[int(index)]
            for name in ("exp_avg", "exp_avg_sq"):
                self._adamw.state[weight][name] = moments[name].detach().to(weight.device, torch.float32, copy=True)
        self.take_state()

    def count_steps(self) -> None:
        """Write each weight's number of steps into the torch AdamW's state."""
        for master, steps in zip(self._masters, self._steps.clone().unbind(), strict=True):
            self._adamw.state[master]["step"] = steps.clone()

    def step(self, gradients: Sequence[Tensor | None], rate: float, scale: Tensor, skip: Tensor) -> None:
        """Update all weights that have a gradient."""
        self._steps_taken += 1
        with torch.no_grad():
            self._kernel(
                gradients, self._steps, rate=rate, scale=scale, skip=skip, seed=(self._seed + self._steps_taken) % 2**19
            )


def _kernel(tensors: Sequence[AdamWTensors], rule: AdamWRule) -> Callable[..., None]:
    """The Triton kernel on a GPU, the same in plain torch elsewhere."""
    if not tensors[0].weight.is_cuda or lack_of_triton():
        return partial(adamw_in_torch, tensors, rule=rule)
    from mftcoder.kernels.adamw_triton import OnePassAdamW

    return OnePassAdamW(tensors, rule).update


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together, in float32."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float32)))


class Halt:
    """Decides which steps update nothing: those that are not finite and, with train.on_nonfinite: stop, all later ones."""

    def __init__(self, config: TrainConfig):
        self._stops = config.on_nonfinite == "stop"
        self._halted: Tensor | None = None

    def after(self, *values: Tensor | None) -> Tensor:
        """1 if a step with these values must update nothing, else 0: the `found_inf` of a fused optimizer."""
        bad = torch.stack([~torch.isfinite(value).all() for value in values if value is not None]).any()
        if self._stops:
            bad = self._halted = bad if self._halted is None else bad | self._halted
        return bad.float()


def adamw(named: Sequence[tuple[str, Tensor]], config: TrainConfig) -> torch.optim.Optimizer:
    """torch's AdamW, or bitsandbytes' with 8-bit moments, with two groups of weights: those that decay, then the others."""
    groups = [
        {"params": [weight for name, weight in named if decays(name, weight)], "weight_decay": config.weight_decay},
        {"params": [weight for name, weight in named if not decays(name, weight)], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "lr": config.learning_rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon
    }  # fmt: skip
    if config.optim == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit([group for group in groups if group["params"]], **settings)
    return torch.optim.AdamW(groups, **settings, fused=True)


def decays(name: str, parameter: Tensor) -> bool:
    """True for matrices; biases, norms and other vectors do not decay."""
    return parameter.ndim >= 2 and not name.endswith("bias")
