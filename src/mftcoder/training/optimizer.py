"""AdamW with decay groups, float32 master weights behind low-precision parameters, and schedules as functions of the step.

Goes in: the trained parameters and the train section of the config. Comes out: an optimiser that steps and a learning rate for
any step. The parameters are held in the model's dtype (fast products, no casts in the forward pass); where that is bfloat16 the
optimiser keeps a float32 copy of each, accumulates gradients in it and rounds the parameter from it after every step, so that
small updates are not lost and micro-batches add up in float32.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mftcoder.config.schema import TrainConfig
from mftcoder.training.shares import whole_tensor


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (0-based): linear warm-up, then the schedule down to min_lr at the last step."""
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


class Optimizer(Protocol):
    """What a step asks of an optimiser; a backend makes it. All ranks call each method."""

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """Sum the gradients over ranks, clip, update at learning rate `rate`, clear them; returns their norm before clipping.

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


class MasterAdamW:
    """torch's AdamW on float32 weights. A float32 parameter is its own master; a bfloat16 one gets a copy.

    `sum_gradients` is called with the masters before each step, `whole_norm` with the norm of the gradients held here.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: TrainConfig,
        *,
        sum_gradients: Callable[[list[Tensor]], None] | None = None,
        whole_norm: Callable[[Tensor], Tensor] | None = None,
    ):
        self._sum_gradients, self._whole_norm = sum_gradients, whole_norm
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in trained]
        self.masters = [_master_of(parameter) for parameter in self.parameters]
        self._config = config
        self._halt = Halt(config)
        self._adamw: Any = adamw([(n, m) for (n, _), m in zip(trained, self.masters, strict=True)], config)

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """Clip, update at learning rate `rate`, clear the gradients; returns the gradients' norm before clipping, unsynced.

        Whether anything is updated (see Optimizer.step) the device decides, without waiting.
        """
        if self._sum_gradients:
            self._sum_gradients(self.masters)
        limit = self._config.max_grad_norm
        norm = nn.utils.get_total_norm([master.grad for master in self.masters if master.grad is not None])
        norm = self._whole_norm(norm) if self._whole_norm else norm
        nn.utils.clip_grads_with_norm_(self.masters, math.inf if limit is None else limit, norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.found_inf = self._halt.after(norm, loss_sums)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the masters that are not parameters themselves."""
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        return {"adamw": self._adamw.state_dict(), "masters": [copy.detach() for copy in copies]}

    def room(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """For all of it."""
        return whole_tensor(name, size, dtype)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; the parameters themselves are the checkpoint's business."""
        self._adamw.load_state_dict(state["adamw"])
        copies = [m for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        with torch.no_grad():
            for copy, saved in zip(copies, state["masters"], strict=True):
                copy.copy_(saved)


class Halt:
    """Which steps change nothing: those that are not finite and, with train.on_nonfinite: stop, all after the first of them."""

    def __init__(self, config: TrainConfig):
        self._stops = config.on_nonfinite == "stop"
        self._halted: Tensor | None = None

    def after(self, *values: Tensor | None) -> Tensor:
        """1 if a step with these values must change nothing, else 0: a fused optimiser's `found_inf`, which leaves all as it is."""
        bad = torch.stack([~torch.isfinite(value).all() for value in values if value is not None]).any()
        if self._stops:
            bad = self._halted = bad if self._halted is None else bad | self._halted
        return bad.float()


def adamw(named: Sequence[tuple[str, Tensor]], config: TrainConfig) -> torch.optim.AdamW:
    """torch's AdamW on these weights: those that decay, then the others."""
    return torch.optim.AdamW(
        [
            {"params": [weight for name, weight in named if decays(name, weight)], "weight_decay": config.weight_decay},
            {"params": [weight for name, weight in named if not decays(name, weight)], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices decay; biases, norms and other vectors do not."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _master_of(parameter: nn.Parameter) -> Tensor:
    """The float32 weight that is updated; gradients of a low-precision parameter flow into it as they are made."""
    if parameter.dtype == torch.float32:
        return parameter
    master = parameter.detach().float().requires_grad_(True)

    def accumulate(finished: Tensor) -> None:
        assert finished.grad is not None
        if master.grad is None:
            master.grad = finished.grad.float()
        else:
            master.grad.add_(finished.grad)
        finished.grad = None

    parameter.register_post_accumulate_grad_hook(accumulate)
    return master
