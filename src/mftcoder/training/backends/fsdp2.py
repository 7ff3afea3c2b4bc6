"""FSDP2: weights, gradients and moments are sharded over the ranks with PyTorch's `fully_shard`.

Each decoder layer is gathered for its forward and its backward pass and then freed. Embedding, last norm and head stay gathered from
the forward to the end of the backward pass, because the cross entropy uses the head in between. The trained shards are float32 and
are the master weights; layers are gathered and multiplied in the model's dtype. Gradients are sums over ranks. Checkpoints have the
layout of one device, gathered on rank 0 or written by each rank, so that every backend can read every checkpoint.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backends.base import Decoder, NamedParameters, refused_over_shards
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.optimizer import MasterAdamW, Optimizer, decays
from mftcoder.training.sharded_state import ShardedState, insert_tensors, trained_weights

REDUCE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Fsdp2Backend:
    """Every rank holds a shard of each weight."""

    lockstep = True

    def __init__(self, config: BackendConfig):
        self.config = config
        self.group = ProcessGroup(config)
        self.device = self.group.device
        # Layers are moved to the device one by one, so the whole model need not fit there.
        self.load_device = torch.device("cpu")
        self._dtype = torch.float32
        self._root: Any = None
        self._checkpoint_group: Any = None

    @property
    def shard_ranks(self) -> int:
        """The number of ranks that hold one copy of the model together."""
        return self.config.shard_group_size or self.group.world_size

    def check(self, config: RunConfig) -> None:
        """ConfigError for options that need a layer's complete weights, and for uneven groups."""
        others = [
            (
                config.model.quantization == "8bit",
                "model.quantization: 8-bit weights lose their scales when they are cut",
            ),
            (
                config.train.torch_compile is True,
                "train.torch_compile: compiled layers were not shown to gather rightly",
            ),
        ]
        problems = refused_over_shards(config, "fsdp2", others)
        if self.group.world_size % self.shard_ranks:
            problems.append(
                f"backend.shard_group_size: {self.shard_ranks} does not divide the {self.group.world_size} processes."
            )
        if problems:
            raise ConfigError(*problems)

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Shard every weight, the trained ones as float32 masters, and free what does not belong to this rank."""
        self._root, self._dtype = model.causal_lm, model.causal_lm.dtype
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        mesh = self._mesh()
        low = self._dtype != torch.float32
        precision = MixedPrecisionPolicy(
            param_dtype=self._dtype if low else None,
            reduce_dtype=REDUCE[self.config.reduce_dtype],
            cast_forward_inputs=False,
        )
        for part in model.module.modules():
            if getattr(part, "quant_state", None) is not None:
                part.quant_state.to(
                    self.device
                )  # the scales of a 4-bit layer are no parameters, so every rank has all of them
        gpu = self.device.type == "cuda"
        kept = CPUOffloadPolicy(pin_memory=gpu) if self.config.offload == "all" else OffloadPolicy()
        for layer in model.decoder_layers():
            fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=kept)
        fully_shard(self._root, mesh=mesh, mp_policy=precision, reshard_after_forward=False, offload_policy=kept)
        for part in self._root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # sums, not means
                part.set_force_sum_reduction_for_comms(True)
        model.decoder = _gathering(self._root, model.decoder)
        model.device = self.device

    def _mesh(self) -> DeviceMesh:
        copies = self.group.world_size // self.shard_ranks
        if copies == 1:
            return init_device_mesh(self.device.type, (self.shard_ranks,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (copies, self.shard_ranks), mesh_dim_names=("copy", "shard"))

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        self._root.reshard()
        return ShardedAdamW(list(named_parameters), config, self, masters=self._dtype != torch.float32)

    def full_tensor(self, shard: Tensor, like: DTensor) -> Tensor:
        """The full tensor of the ranks' shards, which are sharded like `like`; on the CPU of rank 0, empty on other ranks."""
        full = sharded_like(like, shard.to(self.device)).full_tensor()
        return full.cpu() if self.group.rank == 0 else full.new_empty(0, device="cpu")

    def full_state_dict(self, module: Any) -> dict[str, Tensor] | None:
        """The trained weights (for full training all of them) in the model's dtype."""
        self._root.reshard()
        return {
            name: self.full_tensor(local_shard(weight), weight).to(self._dtype)
            if isinstance(weight, DTensor)
            else weight.cpu()
            for name, weight in trained_weights(module).items()
        }

    def sharded_state(self, module: Any, optimizer: Optimizer) -> ShardedState | None:
        """Moments and masters; for full training also the weights, in the model's dtype."""
        assert isinstance(optimizer, ShardedAdamW)
        self._root.reshard()
        if self._checkpoint_group is None:
            self._checkpoint_group = dist.new_group(backend="gloo", timeout=self.group.timeout)
        full = all(weight.requires_grad for weight in module.parameters())
        return ShardedState(
            model={
                name: sharded_like(weight, local_shard(weight).to(self._dtype))
                if isinstance(weight, DTensor)
                else weight
                for name, weight in (trained_weights(module) if full else {}).items()
            },
            optimizer=optimizer.sharded_tensors(),
            rest=optimizer.rest(),
            group=self._checkpoint_group,
        )


def _gathering(root: Any, decode: Any) -> Any:
    """`decode` as a forward method of `root`, so that FSDP2 gathers the weights before it and sets backward hooks after it."""

    def decoded(**inputs: Any) -> Any:
        return decode(**inputs)

    root.decoded = decoded
    register_fsdp_forward_method(root, "decoded")
    return root.decoded


def local_shard(parameter: Any) -> Tensor:
    """This rank's shard of a weight; shares the weight's memory."""
    with torch.no_grad():
        return parameter.detach().to_local()


def sharded_like(like: Any, shard: Tensor) -> DTensor:
    """A DTensor of this rank's shard, sharded like `like`; uses the shard's memory."""
    meta = TensorMeta(like.shape, like.stride(), shard.dtype)
    # from_local would move a shard in the host's memory to the device.
    return DTensor(shard, DTensorSpec(like.device_mesh, like.placements, meta), requires_grad=False)


def own_shard(whole: Tensor, like: DTensor) -> Tensor:
    """This rank's shard of a full tensor, sharded like `like`: its rows are distributed as in torch.chunk."""
    if isinstance(whole, DTensor):
        return whole.to_local()
    parts = whole.chunk(like.device_mesh.size(-1))
    index = like.device_mesh.get_local_rank(like.device_mesh.ndim - 1)
    return parts[index] if index < len(parts) else whole[:0]


class _ShardedGradients:
    """This rank's shards of the gradients. FSDP2 sums each layer's over ranks while the backward pass continues with the next one.

    It does so in each pass, or only in the last pass of a step: until then each rank adds up full gradients in float32.
    """

    def __init__(self, root: Any, parameters: list[Any], *, each_pass: bool):
        self._root, self._parameters, self._each_pass = root, parameters, each_pass
        self._summed = True

    def backward(self, objective: Tensor, *, last: bool) -> None:
        self._summed = last or self._each_pass
        self._root.set_requires_gradient_sync(self._summed)
        objective.backward()

    def sum_over_ranks(self) -> None:
        """Do nothing: the last pass summed them."""
        assert self._summed, "no pass was marked as the last one"

    def take(self) -> list[Tensor | None]:
        """The shards since the last call."""
        taken = [None if parameter.grad is None else parameter.grad.to_local() for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return taken


class ShardedAdamW:
    """MasterAdamW on the shards. Its state_dict is the full one, in the layout of one device."""

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], config: TrainConfig, backend: Fsdp2Backend, *, masters: bool
    ):
        self._backend, self._low_precision = backend, masters
        self._parameters: list[Any] = [parameter for _, parameter in named]
        self._shards = [nn.Parameter(local_shard(parameter)) for parameter in self._parameters]
        self._copies = backend.group.world_size // backend.shard_ranks
        names = [name for name, _ in named]
        self._adamw = MasterAdamW(
            zip(names, self._shards, strict=True),
            config,
            gradients=_ShardedGradients(backend._root, self._parameters, each_pass=config.sync_each_batch is not False),
            whole_norm=self._whole_norm,
        )
        in_order = sorted(zip(names, self._parameters, strict=True), key=lambda pair: not decays(*pair))
        self._by_index = [parameter for _, parameter in in_order]  # in the order of torch's AdamW, group by group

    def backward(self, objective: Tensor, *, last: bool) -> None:
        self._adamw.backward(objective, last=last)

    def sum_gradients(self) -> None:
        self._adamw.sum_gradients()

    def step(self, rate: float, loss_sums: Tensor | None = None) -> Tensor:
        device = self._shards[0].device
        return self._adamw.step(rate, None if loss_sums is None else loss_sums.to(device))

    def _whole_norm(self, norm: Tensor) -> Tensor:
        squares = self._backend.group.sum_over_ranks(
            norm.double() ** 2
        )  # each copy of the model contributes the whole norm
        return (squares / self._copies).sqrt().to(norm.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Moments and, for a low-precision model, masters; complete on rank 0."""
        state = self.rest()
        insert_tensors(
            state,
            {
                name: self._backend.full_tensor(shard.to_local(), shard)
                for name, shard in self.sharded_tensors().items()
            },
        )
        return state

    def sharded_tensors(self) -> dict[str, Any]:
        """This rank's shards of moments and masters, in the memory that training writes to."""
        masters = [(f"masters.{index}", shard) for index, shard in enumerate(self._shards) if self._low_precision]
        moments = [
            (f"state.{index}.{name}", value)
            for index, of_parameter in self._adamw.state_dict()["adamw"]["state"].items()
            for name, value in of_parameter.items()
            if name != "step"
        ]
        return {name: sharded_like(self._owner(name), value.detach()) for name, value in [*moments, *masters]}

    def rest(self) -> dict[str, Any]:
        """The part of the state that is not sharded: steps and settings."""
        adamw = self._adamw.state_dict()["adamw"]
        steps = {index: {"step": of_parameter["step"]} for index, of_parameter in adamw["state"].items()}
        return {"adamw": {**adamw, "state": steps}, "masters": []}

    def _owner(self, name: str) -> Any:
        """The parameter that the shard of this name belongs to."""
        kind, index = name.split(".")[:2]
        return (self._parameters if kind == "masters" else self._by_index)[int(index)]

    def allocate(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        owner = self._owner(name)
        assert size == owner.shape
        return sharded_like(owner, torch.empty_like(local_shard(owner), dtype=dtype))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's shards of a full state dict, or the shards that `allocate` made memory for."""
        saved = state["adamw"]
        shards = {
            index: {
                name: value if name == "step" else own_shard(value, self._by_index[index]).clone()
                for name, value in of_parameter.items()
            }
            for index, of_parameter in saved["state"].items()
        }
        self._adamw.load_state_dict({"adamw": {**saved, "state": shards}, "masters": []})
        if state["masters"]:
            with torch.no_grad():
                for shard, parameter, master in zip(self._shards, self._parameters, state["masters"], strict=True):
                    shard.copy_(own_shard(master, parameter))
