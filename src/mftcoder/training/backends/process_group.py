"""The ranks of a run: the device of each, and their communication.

It reads the environment variables of torchrun, accelerate and Slurm scripts (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
Each collective has a name, so that an error can say which rank is missing in which collective. Tensors on a GPU use nccl, tensors on
the host gloo, so that agreeing on a value never waits for a device.
"""

import base64
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mftcoder.config.schema import BackendConfig
from mftcoder.errors import ConfigError, MftError, TrainingError, reason
from mftcoder.kernels.context_group import ALONE, ContextGroup

Value = TypeVar("Value")
_SECONDS_TO_READ = 10.0


def launched_processes() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(wanted: str) -> torch.device:
    """The GPU of this process if there is one, else the CPU. ConfigError if `cuda` is wanted and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend.device: cuda was chosen, but torch finds no CUDA device. Use auto or cpu.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda", torch.cuda.current_device())
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"backend: process {index} of this machine has no GPU of its own, there are {count}. Start {count} processes."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_context_parallel_size(size: int, world_size: int) -> None:
    """ConfigError unless the number of processes is a multiple of `size`."""
    if world_size % size:
        raise ConfigError(
            f"backend.context_parallel_size: {size} ranks share each row, but {world_size} processes were started. Start a "
            f"multiple of {size}, for example with mft train --nproc {size}."
        )


class OneProcess:
    """The group of a process that trains alone, without torch.distributed."""

    rank = data_rank = 0
    world_size = data_world_size = 1
    context = ALONE

    def __init__(self, config: BackendConfig):
        self.device = pick_device(config.device)
        self._context_size = config.context_parallel_size

    def joined(self) -> AbstractContextManager[None]:
        """ConfigError if rows are to be shared: there are no other ranks."""
        check_context_parallel_size(self._context_size, 1)
        return nullcontext()

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run the action: this is rank 0."""
        return action()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values

    def any_rank(self, flag: bool) -> bool:
        return flag

    def all_gather(self, value: Value) -> list[Value]:
        return [value]


class ProcessGroup:
    """The processes that a launcher started, connected with torch.distributed. All ranks call each method in the same order.

    Without a launcher there is one process.
    """

    context: ContextGroup = ALONE
    """The ranks that share this one's rows; set by `joined`."""

    def __init__(self, config: BackendConfig):
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = launched_processes()
        self._context_size = config.context_parallel_size
        # Which part of a step's rows this rank runs, and the number of parts: ranks that share rows run the same part.
        self.data_rank, self.data_world_size = self.rank // self._context_size, self.world_size // self._context_size
        self.device = pick_device(config.device)
        self.timeout = timedelta(seconds=config.timeout_seconds)
        self._start_timeout = timedelta(seconds=config.init_timeout_seconds)
        self._store: dist.Store | None = None
        self._count = 0  # collectives so far
        self._answers = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connect to the other ranks for the duration of the block. TrainingError if they do not connect."""
        check_context_parallel_size(self._context_size, self.world_size)
        self._start()
        try:
            self.context = self._context_group()
            yield
        finally:
            self._let_others_read()
            dist.destroy_process_group()

    def _let_others_read(self) -> None:
        """Wait until all ranks have read rank 0's last answer, because rank 0 may hold the store; a few seconds at most."""
        if self._store is None or self.rank != 0 or not self._answers:
            return
        deadline = time.monotonic() + _SECONDS_TO_READ
        while self._store.add(f"answer/{self._answers}/read", 0) < self.world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.01)

    def _start(self) -> None:
        engine = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if self.world_size == 1 and "MASTER_ADDR" not in os.environ:
            dist.init_process_group(engine, store=dist.HashStore(), rank=0, world_size=1)
            return
        try:
            # Ranks may start at very different times, so this has a timeout of its own.
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.world_size, timeout=self._start_timeout))
            dist.init_process_group(
                engine, store=store, rank=self.rank, world_size=self.world_size, timeout=self.timeout
            )
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                f"rank {self.rank}: the {self.world_size} processes did not find each other: {reason(error)}. Start "
                "them with mft train --nproc, torchrun or accelerate launch."
            ) from error
        self._store = dist.PrefixStore("mftcoder", store)

    def _context_group(self) -> ContextGroup:
        """The group of consecutive ranks that this one shares rows with."""
        size = self._context_size
        if size == 1:
            return ALONE
        groups = [
            dist.new_group(list(range(first, first + size)), timeout=self.timeout)
            for first in range(0, self.world_size, size)
        ]
        return ContextGroup(size, self.rank % size, groups[self.data_rank], self.run)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` over all ranks, on every rank."""
        return self.sum_in_place(values.clone(), "summing losses")

    def sum_in_place(self, values: Tensor, name: str) -> Tensor:
        """The element-wise sum over ranks, in place; `name` is what is summed, for errors."""
        self.run(name, lambda: dist.all_reduce(values))
        return values

    def any_rank(self, flag: bool) -> bool:
        """True if the flag is true on any rank."""
        found = torch.tensor([int(flag)])
        self.run("agreeing to go on", lambda: dist.all_reduce(found, op=dist.ReduceOp.MAX))
        return bool(found.item())

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.world_size
        self.run("exchanging values", lambda: dist.all_gather_object(values, value))
        return values

    def run_on_rank0(self, action: Callable[[], Value]) -> Value:
        """Run `action` on rank 0. Every rank returns its value, or raises its MftError.

        The other ranks wait up to `init_timeout_seconds`, because preparing data can take long.
        """
        if self._store is None:
            return action()
        self._answers += 1
        key = f"answer/{self._answers}"
        if self.rank == 0:
            try:
                value = action()
            except MftError as error:
                self._store.set(key, _as_text((None, error)))
                raise
            self._store.set(key, _as_text((value, None)))
            return value
        try:
            self._store.wait([key], self._start_timeout)
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank}: rank 0 gave no answer within {self._start_timeout.total_seconds():.0f} s. If it prepares "
                "data, run mft prepare first or raise backend.init_timeout_seconds."
            ) from error
        value, problem = pickle.loads(base64.b64decode(self._store.get(key)))
        self._store.add(f"{key}/read", 1)
        if problem:
            problem.reported = True
            raise problem
        return value

    def copy_from_rank0(self, tensors: list[Tensor]) -> None:
        """Give every rank the values of rank 0."""
        for tensor in tensors:
            self.run("copying weights", partial(dist.broadcast, tensor, src=0))

    def run(self, name: str, collective: Callable[[], object]) -> None:
        """Run a collective under this name. If it fails, TrainingError with the ranks that did not reach it."""
        self._count += 1
        if self._store:
            self._store.set(f"at/{self.rank}", f"{self._count} {name}")
        try:
            collective()
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank}: '{name}' (number {self._count}) failed: {self._missing()}. {reason(error)}"
            ) from error

    def _missing(self) -> str:
        """Which ranks did not reach this collective, and the last one that each reached."""
        if self._store is None:
            return "there is no other rank"
        late = []
        try:
            for rank in range(self.world_size):
                key = f"at/{rank}"
                count, where = (
                    self._store.get(key).decode().split(" ", 1) if self._store.check([key]) else ("0", "its start")
                )
                if int(count) < self._count:
                    late.append(f"rank {rank} has not come to it, and was last seen in '{where}' (number {count})")
        except RuntimeError:
            return "the launcher's store is gone"
        return "; ".join(late) or "all ranks came to it, but one of them broke off"


Group = OneProcess | ProcessGroup


def _as_text(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()
