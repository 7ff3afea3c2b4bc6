"""AdamW with decay groups, float32 master weights behind low-precision parameters, and schedules as functions of the step.

Goes in: the trained parameters and the train section of the config. Comes out: an optimizer that steps and a learning rate for
any step. The parameters are held in the model's dtype (fast products, no casts in the forward pass); where that is bfloat16 the
optimizer keeps a float32 copy of each, accumulates gradients in it and rounds the parameter from it after every step, so that
small updates are not lost and micro-batches add up in float32.
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
from mftcoder.training.sharded_state import whole_tensor


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (0-based): linear warm-up, then the schedule down to min_lr at the last step."""
    warmup = warmup_steps(total_steps, config)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    falling = 1.0 - progress if config.lr_scheduler_type == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr + (config.learning_rate - config.min_lr) * falling


def warmup_steps(total_steps: int, config: TrainConfig) -> int:
    """Whole steps of warm-up; a value below 1 is a share of all steps, rounded up."""
    value = config.warmup_steps
    return math.ceil(value * total_steps) if value < 1 else int(value)


def check_optimizer(config: TrainConfig) -> None:
    """ConfigError if the optimizer that the config names is not installed."""
    if config.optim == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.optim: adamw_8bit needs bitsandbytes, which is not installed: pip install 'mftcoder[qlora]', or use adamw."
        )


class Optimizer(Protocol):
    """What a step asks of an optimizer; a backend makes it. All ranks call each method but `backward`, in the same order."""

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Add the objective's gradients to those of the step's earlier passes. `last`: no pass follows on this rank, so that sums
        over ranks may start while this one runs; a backend whose ranks run in lockstep must be told of the last pass.
        """
        ...

    def sum_gradients(self) -> None:
        """Finish the gradients' sums over ranks: the step's passes are over. Comes before `step`."""
        ...

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """Clip the gradients, update at learning rate `rate`, clear them; returns their norm before clipping.

        Nothing is updated if the norm or one of `loss_sums` is not finite; with train.on_nonfinite: stop nothing from then
        on, so that the model stays as it was in the bad step however late the host reads of it.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in the layout of MasterAdamW; at least on rank 0."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of any backend; every rank is given the whole state, or what it has `room` for."""
        ...

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where a tensor of a sharded checkpoint (`Shares.optimizer`) is read to before `load_state_dict`."""
        ...


class Gradients(Protocol):
    """Carries the gradients of the trained weights from the backward passes to the update."""

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """As in Optimizer."""
        ...

    def sum_over_ranks(self) -> None:
        """As `sum_gradients` in Optimizer."""
        ...

    def take(self) -> list[Tensor | None]:
        """Each weight's gradient since the last call; None where there was no backward pass through it on any rank."""
        ...


class MasterAdamW:
    """AdamW on float32 weights. A float32 parameter is its own master; a bfloat16 one gets a copy, unless its own rounding is drawn.

    On a GPU one kernel updates everything (kernels/adamw_triton.py); elsewhere torch's fused AdamW does, or bitsandbytes' with moments
    in 8 bits. `gradients` carries them where there are several ranks; `whole_norm` turns the norm of what it gives into the norm
    over all ranks.
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
        drawn = config.master_weights == "stochastic_rounding"
        on_gpu = all(parameter.is_cuda for parameter in self.parameters) and lack_of_triton() is None
        on_gpu = on_gpu and config.optim != "adamw_8bit"
        if on_gpu or drawn:
            _lay_out(self.parameters)
        self.masters: list[Tensor] = [parameter if drawn else _master_of(parameter) for parameter in self.parameters]
        self._config = config
        self._halt = Halt(config)
        self._gradients = gradients or LocalGradients(self.parameters)
        self._adamw: Any = adamw([(n, m) for (n, _), m in zip(trained, self.masters, strict=True)], config)
        self._one_pass = OnePass(self._adamw, self.parameters, self.masters, config) if on_gpu or drawn else None

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Add the objective's gradients to the step's."""
        self._gradients.backward(objective, last=last)

    def sum_gradients(self) -> None:
        """Finish the gradients' sums over ranks."""
        self._gradients.sum_over_ranks()

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """Clip, update at learning rate `rate`, clear the gradients; returns the gradients' norm before clipping, unsynced.

        Whether anything is updated (see Optimizer.step) the device decides, without waiting; 8-bit moments wait for it.
        """
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
            self._adamw.found_inf = skip  # what GradScaler sets: the fused kernel then leaves all as it is
            self._adamw.step()
        elif not skip:
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the masters that are not parameters themselves."""
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        if self._one_pass:
            self._one_pass.count_steps()
        return {"adamw": self._adamw.state_dict(), "masters": [copy.detach() for copy in copies]}

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """For all of it."""
        return whole_tensor(name, size, dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` with this run's own settings; the parameters themselves are the checkpoint's business."""
        settings = [{name: group[name] for name in group if name != "params"} for group in self._adamw.param_groups]
        self._adamw.load_state_dict(state["adamw"])
        for group, own in zip(self._adamw.param_groups, settings, strict=True):
            group.update(own)  # torch takes the saved decay, betas and epsilon, which may have been changed since
        if self._one_pass:
            self._one_pass.take_moments(state["adamw"]["state"])
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        with torch.no_grad():
            for copy, saved in zip(copies, state["masters"], strict=True):
                copy.copy_(saved)


class LocalGradients:
    """Those of one rank. The first of a low-precision weight is kept as it came; from the second on they add up in float32."""

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
        """Plain autograd."""
        objective.backward()

    def sum_over_ranks(self) -> None:
        """There is one rank."""

    def take(self) -> list[Tensor | None]:
        """Each parameter's gradient since the last call; None where there was no backward pass through it."""
        found = [
            parameter.grad if parameter.dtype == torch.float32 else self._kept.get(index)
            for index, parameter in enumerate(self._parameters)
        ]
        self._kept.clear()
        for parameter in self._parameters:
            parameter.grad = None
        return found


class OnePass:
    """Updates with our own kernel; the state lies in a torch AdamW, so that checkpoints have its layout."""

    def __init__(self, adamw: Any, parameters: Sequence[Tensor], masters: Sequence[Tensor], config: TrainConfig):
        self._adamw, self._parameters, self._masters = adamw, parameters, masters
        drawn = config.master_weights == "stochastic_rounding"
        self._rule = AdamWRule(config.adam_beta1, config.adam_beta2, config.adam_epsilon, stochastic_rounding=drawn)
        self._seed = config.seed
        self.take_state()

    def take_state(self) -> None:
        """Take over what the torch AdamW holds; weights that it has no state of start from zero."""
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
        self._drawn = int(self._steps.max())  # steps taken so far: the seed of a step's rounding
        self._kernel = _kernel(tensors, self._rule)
        self.count_steps()

    def take_moments(self, saved: dict[int, dict[str, Any]]) -> None:
        """Go on from saved moments in float32; torch would round them to the weights' dtype."""
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
        """One update of all weights that have a gradient."""
        self._drawn += 1
        with torch.no_grad():
            self._kernel(
                gradients, self._steps, rate=rate, scale=scale, skip=skip, seed=(self._seed + self._drawn) % 2**19
            )


def _kernel(tensors: Sequence[AdamWTensors], rule: AdamWRule) -> Callable[..., None]:
    """The one launch on a GPU, its plain twin elsewhere."""
    if not tensors[0].weight.is_cuda or lack_of_triton():
        return partial(adamw_in_torch, tensors, rule=rule)
    from mftcoder.kernels.adamw_triton import OnePassAdamW

    return OnePassAdamW(tensors, rule).update


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together, float32, whatever their dtype."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float32)))


class Halt:
    """Which steps change nothing: those that are not finite and, with train.on_nonfinite: stop, all after the first of them."""

    def __init__(self, config: TrainConfig):
        self._stops = config.on_nonfinite == "stop"
        self._halted: Tensor | None = None

    def after(self, *values: Tensor | None) -> Tensor:
        """1 if a step with these values must change nothing, else 0: a fused optimizer's `found_inf`, which leaves all as it is."""
        bad = torch.stack([~torch.isfinite(value).all() for value in values if value is not None]).any()
        if self._stops:
            bad = self._halted = bad if self._halted is None else bad | self._halted
        return bad.float()


def adamw(named: Sequence[tuple[str, Tensor]], config: TrainConfig) -> torch.optim.Optimizer:
    """torch's AdamW on these weights, or bitsandbytes' with 8-bit moments: those that decay, then the others."""
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
    """Matrices decay; biases, norms and other vectors do not."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _lay_out(parameters: Sequence[nn.Parameter]) -> None:
    """Store each weight row by row, as the kernel reads it."""
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()


def _master_of(parameter: nn.Parameter) -> Tensor:
    """The float32 weight that is updated: the parameter itself, or a copy."""
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_(True)
