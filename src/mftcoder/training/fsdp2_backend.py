"""Weights, gradients and moments shared out over the ranks: PyTorch's `fully_shard`, used directly.

Each decoder layer is gathered for its forward and its backward and let go again; embedding, last norm and head stay gathered
between the forward and the end of the backward, because the cross entropy uses the head in between. The trained shares are
float32 and are the master weights: layers are gathered and multiplied in the model's dtype. Gradients are sums over ranks.
Checkpoints are gathered on rank 0 in the layout of one device, so that every backend reads every checkpoint.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backend import Decoder, NamedParameters
from mftcoder.training.optimizer import MasterAdamW, Optimizer, decays
from mftcoder.training.process_group import ProcessGroup

REDUCE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Fsdp2Backend(ProcessGroup):
    """A share of the model a rank."""

    lockstep = True

    def __init__(self, config: BackendConfig):
        super().__init__(config)
        # Layers go to the device one by one: the whole model need never fit there.
        self.load_device = torch.device("cpu")
        self._config = config
        self._dtype = torch.float32
        self._root: Any = None

    def check(self, config: RunConfig) -> None:
        """ConfigError for a balancer or a format that needs a layer's weights in one piece."""
        size = self._config.shard_group_size or self.world_size
        refused = [
            (config.balancer.name == "gradnorm", "balancer.name: gradnorm compares gradients of a whole layer"),
            (config.model.quantization is not None, "model.quantization: packed weights cannot be cut into shares"),
            (config.train.torch_compile, "train.torch_compile: compiled layers were not shown to gather rightly"),
        ]
        problems = [
            f"{problem}, which backend fsdp2 does not offer. Use ddp." for applies, problem in refused if applies
        ]
        if self.world_size % size:
            problems.append(f"backend.shard_group_size: {size} does not divide the {self.world_size} processes.")
        if problems:
            raise ConfigError(*problems)

    def place(self, model: Decoder) -> None:
        """Cut every weight into shares, the trained ones as float32 masters; what is not this rank's is let go."""
        self._root, self._dtype = model.causal_lm, model.causal_lm.dtype
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        mesh = self._mesh()
        low = self._dtype != torch.float32
        precision = MixedPrecisionPolicy(
            param_dtype=self._dtype if low else None,
            reduce_dtype=REDUCE[self._config.reduce_dtype],
            cast_forward_inputs=False,
        )
        for layer in model.decoder_layers():
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(self._root, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
        for part in self._root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # sums, not means
                part.set_force_sum_reduction_for_comms(True)
        model.decoder = _gathering(self._root, model.decoder)
        model.device = self.device

    def _mesh(self) -> DeviceMesh:
        size = self._config.shard_group_size or self.world_size
        if size == self.world_size:
            return init_device_mesh(self.device.type, (size,), mesh_dim_names=("shard",))
        copies = self.world_size // size
        return init_device_mesh(self.device.type, (copies, size), mesh_dim_names=("copy", "shard"))

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on this rank's shares."""
        self._root.reshard()
        return ShardedAdamW(list(named_parameters), config, self, masters=self._dtype != torch.float32)

    def backward(self, objective: Tensor) -> None:
        """Autograd; each layer's gradients are summed over ranks as they are made."""
        objective.backward()

    def whole(self, share: Tensor, like: DTensor) -> Tensor:
        """The tensor that the ranks' shares make, cut as `like` is; on the CPU of rank 0, empty elsewhere."""
        joined = DTensor.from_local(
            share.to(self.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        ).full_tensor()
        return joined.cpu() if self.rank == 0 else joined.new_empty(0, device="cpu")

    def whole_weights(self, module: Any) -> dict[str, Tensor] | None:
        """What trains (for full training all there is), in the model's dtype."""
        self._root.reshard()
        everything = all(parameter.requires_grad for parameter in module.parameters())
        weights = {
            name: self.whole(local_share(parameter), parameter).to(self._dtype)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if everything:
            kept = module.state_dict().keys()
            weights |= {name: buffer.cpu() for name, buffer in module.named_buffers() if name in kept}
        return weights


def _gathering(root: Any, decode: Any) -> Any:
    """`decode` as a forward of `root`: its weights are gathered before, and its backward hooks are set after."""

    def decoded(**inputs: Any) -> Any:
        return decode(**inputs)

    root.decoded = decoded
    register_fsdp_forward_method(root, "decoded")
    return root.decoded


def local_share(parameter: Any) -> Tensor:
    """This rank's part of a sharded weight, in the very memory of the weight."""
    with torch.no_grad():
        return parameter.detach().to_local()


def own_share(whole: Tensor, like: DTensor) -> Tensor:
    """The part of a whole tensor that this rank holds of `like`: rows are dealt out as torch.chunk does."""
    parts = whole.chunk(like.device_mesh.size(-1))
    index = like.device_mesh.get_local_rank(like.device_mesh.ndim - 1)
    return parts[index] if index < len(parts) else whole[:0]


class ShardedAdamW:
    """MasterAdamW on the shares; its state is whole, in the layout of one device."""

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], config: TrainConfig, backend: Fsdp2Backend, *, masters: bool
    ):
        self._backend, self._low_precision = backend, masters
        self._parameters: list[Any] = [parameter for _, parameter in named]
        self._shares = [nn.Parameter(local_share(parameter)) for parameter in self._parameters]
        self._copies = backend.world_size // (backend._config.shard_group_size or backend.world_size)
        names = [name for name, _ in named]
        self._adamw = MasterAdamW(
            zip(names, self._shares, strict=True),
            config,
            sum_gradients=self._take_gradients,
            whole_norm=self._whole_norm,
        )
        in_order = sorted(zip(names, self._parameters, strict=True), key=lambda pair: not decays(*pair))
        self._by_index = [parameter for _, parameter in in_order]  # as torch's AdamW counts them, group by group

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        """One update of the shares."""
        device = self._shares[0].device
        return self._adamw.step(rate, None if loss_sums is None else loss_sums.to(device))

    def _take_gradients(self, shares: list[Tensor]) -> None:
        for parameter, share in zip(self._parameters, shares, strict=True):
            share.grad = None if parameter.grad is None else parameter.grad.to_local()
            parameter.grad = None

    def _whole_norm(self, norm: Tensor) -> Tensor:
        squares = self._backend.sum_over_ranks(norm.double() ** 2)  # each copy of the model brings the whole once
        return (squares / self._copies).sqrt().to(norm.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Moments and, for a low-precision model, masters: whole on rank 0."""
        state = self._adamw.state_dict()["adamw"]
        moments = {
            index: {
                name: value if name == "step" else self._backend.whole(value, self._by_index[index])
                for name, value in of_parameter.items()
            }
            for index, of_parameter in state["state"].items()
        }
        masters = [
            self._backend.whole(share.detach(), parameter)
            for share, parameter in zip(self._shares, self._parameters, strict=True)
            if self._low_precision
        ]
        return {"adamw": {**state, "state": moments}, "masters": masters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's share of a whole state."""
        whole = state["adamw"]
        shares = {
            index: {
                name: value if name == "step" else own_share(value, self._by_index[index]).clone()
                for name, value in of_parameter.items()
            }
            for index, of_parameter in whole["state"].items()
        }
        self._adamw.load_state_dict({"adamw": {**whole, "state": shares}, "masters": []})
        if state["masters"]:
            with torch.no_grad():
                for share, parameter, master in zip(self._shares, self._parameters, state["masters"], strict=True):
                    share.copy_(own_share(master, parameter))
