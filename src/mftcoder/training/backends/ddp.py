"""Data parallelism: every rank holds the whole model. Uses torch.distributed, with gloo on CPUs and nccl on GPUs.

The float32 gradients are summed over ranks once per step, in buckets, while the last micro-batch's backward pass still runs. A rank
may have no tokens. A weight without a gradient on any rank is not updated, exactly as on one device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mftcoder.config.schema import BackendConfig, RunConfig, TrainConfig
from mftcoder.training.backends.base import Decoder, NamedParameters, WrittenByRank0
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.optimizer import MasterAdamW, Optimizer, check_optimizer

BUCKET_BYTES = 25 << 20
ALIGNMENT = 4  # in float32 numbers: the optimizer's kernel reads vectors of 16 bytes


class DdpBackend(WrittenByRank0):
    """The whole model on every rank."""

    def __init__(self, config: BackendConfig):
        self.config = config
        self.group = ProcessGroup(config)
        self.device = self.load_device = self.group.device
        self.lockstep = config.context_parallel_size > 1

    def check(self, config: RunConfig) -> None:
        """ConfigError for packages that are not installed; every option of one device is supported."""
        check_optimizer(config.train)

    def place(self, model: Decoder, config: TrainConfig) -> None:
        """Copy rank 0's trained weights to all ranks: if they were initialized at random, they could differ between devices."""
        trained = [parameter.data for parameter in model.module.parameters() if parameter.requires_grad]
        self.group.copy_from_rank0(trained)

    def optimizer(self, named_parameters: NamedParameters, config: TrainConfig) -> Optimizer:
        """AdamW on float32 masters, with gradients summed over ranks."""
        named = list(named_parameters)
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        # Ranks that share rows communicate inside a pass; together with the gradients' sums that could deadlock.
        gradients = SummedGradients(trained, self.group.run, overlap=not self.lockstep)
        return MasterAdamW(named, config, gradients=gradients)


class SummedGradients:
    """The gradients of a step, in float32 buckets that are summed over ranks.

    The sum of a bucket starts when the last pass has made all its gradients and the sum of the previous bucket has started, so all
    ranks start the same sums in the same order. The remaining sums start after the passes, with zeros for gradients that this rank
    does not have.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], run: Callable[[str, Callable[[], object]], None], *, overlap: bool
    ):
        """`run(name, collective)` runs a collective with a name for errors. Without `overlap` all sums start after the passes."""
        self._parameters, self._run, self._overlap = parameters, run, overlap
        self._buckets = [_Bucket(members, parameters) for members in _groups(parameters)]
        self._bucket_of = {index: bucket for bucket in self._buckets for index in bucket.places}
        self._clear()
        for index, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._add, index))

    def _clear(self) -> None:
        self._present = torch.zeros(len(self._parameters), dtype=torch.int64)  # 1 where this rank has a gradient
        self._last, self._works = False, list[dist.Work]()
        for bucket in self._buckets:
            bucket.clear()

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Add the objective's gradients to the step's. In the `last` pass start the sum of each bucket that is complete."""
        self._last = last and self._overlap
        objective.backward()

    def _add(self, index: int, parameter: nn.Parameter) -> None:
        """Add the gradient of a weight. Called when a pass has completed it."""
        bucket, gradient = self._bucket_of[index], parameter.grad
        assert gradient is not None and not bucket.started, "a second gradient of one weight in one backward pass"
        parameter.grad = None
        bucket.gradient(index).add_(gradient)
        self._present[index] = 1
        if self._last:
            bucket.missing.discard(index)
            self._start_sums(lambda bucket: not bucket.missing)

    def _start_sums(self, ready: Callable[["_Bucket"], bool]) -> None:
        """Start the sums of the next buckets in order, as long as they are ready."""
        while len(self._works) < len(self._buckets) and ready(bucket := self._buckets[len(self._works)]):
            bucket.started = True
            self._works.append(dist.all_reduce(bucket.numbers, async_op=True))

    def sum_over_ranks(self) -> None:
        """Start the remaining sums, wait for all, and find out which weights have a gradient on any rank."""
        self._run("summing gradients", self._finish_sums)
        self._run("finding the gradients", lambda: dist.all_reduce(self._present))

    def _finish_sums(self) -> None:
        self._start_sums(lambda _: True)
        for work in self._works:
            work.wait()

    def take(self) -> list[Tensor | None]:
        """Each weight's gradient since the last call, summed over ranks; None if no rank has one."""
        assert len(self._works) == len(self._buckets), "sum_over_ranks comes first"
        sums = [
            self._bucket_of[index].gradient(index) if ranks else None
            for index, ranks in enumerate(self._present.tolist())
        ]
        self._clear()
        return sums


class _Bucket:
    """Gradients of neighbouring weights in one float32 tensor, which exists from the first gradient to the update."""

    def __init__(self, members: Sequence[int], parameters: Sequence[nn.Parameter]):
        self._parameters = parameters
        *starts, self._size = accumulate((_aligned_size(parameters[index]) for index in members), initial=0)
        self.places = dict(zip(members, starts, strict=True))
        self.clear()

    def clear(self) -> None:
        self._numbers: Tensor | None = None
        self.started = False  # True if its sum over ranks has started
        self.missing = set(self.places)  # weights whose gradient the last pass has not made yet

    @property
    def numbers(self) -> Tensor:
        """All gradients of the bucket, one after another; zeros for those that are missing."""
        if self._numbers is None:
            device = self._parameters[next(iter(self.places))].device
            self._numbers = torch.zeros(self._size, dtype=torch.float32, device=device)
        return self._numbers

    def gradient(self, index: int) -> Tensor:
        """The view of one weight's gradient, with the memory layout of the weight."""
        weight = self._parameters[index]
        return self.numbers.as_strided(weight.size(), weight.stride(), self.places[index])


def _aligned_size(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNMENT) * ALIGNMENT


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[int]]:
    """The weights' indices in groups of at most BUCKET_BYTES of float32, roughly in the order in which a pass makes the gradients.

    That is from the last weight to the first. Vectors come after all matrices, because the gradient of a norm is the last of its layer
    and would delay the layer's matrices. A weight that is larger than a bucket has one for itself.
    """
    groups: list[list[int]] = []
    size = 0
    for index in sorted(range(len(parameters)), key=lambda index: (parameters[index].ndim < 2, -index)):
        own = 4 * _aligned_size(parameters[index])
        if not groups or size + own > BUCKET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += own
    return groups
