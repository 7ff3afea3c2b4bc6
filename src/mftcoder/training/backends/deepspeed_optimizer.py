"""The update of weights that DeepSpeed has sharded, and the optimizer's state in the layout of one device.

DeepSpeed's engine sums the gradients, clips and updates. The full state dict is that of MasterAdamW, complete on rank 0, so that every
backend can continue from every checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mftcoder.training.optimizer import Halt
from mftcoder.training.sharded_state import allocate_full

MOMENTS = ("exp_avg", "exp_avg_sq")


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
