"""Choose the memory plan of a run before its first step, and the next plan if that step does not fit.

A plan is a config without open choices. `models/gpu_memory/plans.py` says which plans there are and how much memory each takes.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from mftcoder.config.schema import RunConfig
from mftcoder.errors import reason
from mftcoder.log import say, warn
from mftcoder.models.gpu_memory.plans import (
    MOVED,
    MemoryPlan,
    PlannedModel,
    choices,
    device_memory,
    fastest_that_fits,
    gib,
    host_memory,
    in_words,
    lack_of,
    memory_plans,
    not_faster_than,
    plan_model,
)
from mftcoder.models.loading.resolve import ResolvedModel
from mftcoder.registry import BACKENDS
from mftcoder.training.backends.base import Backend
from mftcoder.training.checkpoints.checkpoint import Checkpoint

Outcome = TypeVar("Outcome")
WITH_OTHER_NUMBERS = "Moments in 8 bits train with other numbers than float32 ones; train.optim: adamw keeps those"
ON_THE_HOST = "What lies in the host's memory is fetched and updated there, which is slow; backend.offload: none keeps it on the device"


def plans_of(
    config: RunConfig, backend: Backend, checkpoint: Checkpoint | None, resolved: ResolvedModel | None
) -> list[RunConfig]:
    """The plans that `auto` may take on this device: first the fastest one that fits, then those that take less memory.

    On a CPU every plan counts as fitting. A resumed run takes no faster plan than its checkpoint, and keeps its optimizer. Only rank 0
    needs the resolved model.
    """
    config = config.model_copy(update={"backend": backend.config})
    if checkpoint:
        config = with_optimizer_of(checkpoint, config)
        backend.check(config)
    begun = checkpoint.progress.config if checkpoint else {}
    options = not_faster_than(choices(config, backend.group.world_size), begun)
    if backend.device.type != "cuda":
        return [option for option in options if not lack_of(option)]
    if len(options) == 1:
        return options
    return _with_room(config, options, backend, resolved)


def with_optimizer_of(checkpoint: Checkpoint, config: RunConfig) -> RunConfig:
    """The config with train.optim: auto replaced by the optimizer of the checkpoint, because its moments fit no other one."""
    begun = checkpoint.progress.config.get("train", {}).get("optim", "adamw")
    if config.train.optim != "auto" or begun == "auto":
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"optim": begun})})


def _with_room(
    config: RunConfig, options: list[RunConfig], backend: Backend, resolved: ResolvedModel | None
) -> list[RunConfig]:
    """The options from the fastest one on that fits the GPU by the estimate. Logs which one it is and why."""

    def plan() -> PlannedModel:
        assert resolved is not None
        return plan_model(config, resolved.config)

    model = backend.group.run_on_rank0(plan)
    on_host = host_memory(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    free = backend.group.all_gather((device_memory(backend.device), on_host))
    memory, on_host = (min(values) for values in zip(*free, strict=True))
    known = memory_plans(config, model, "cuda", backend.group.world_size, on_host)
    plans = [plan for plan in known if plan.config in options] or known[-1:]
    fitting = fastest_that_fits(plans, memory)
    usable = [plan for plan in plans if not plan.lack] or plans[-1:]
    chosen = usable[-1] if fitting is None else plans[fitting]
    for line in filter(None, (model.by_formula, *_lines(plans, chosen, memory, config))):
        say(f"memory: {line}")
    return [plan.config for plan in usable[usable.index(chosen) :]]


def _lines(plans: list[MemoryPlan], chosen: MemoryPlan, memory: float, config: RunConfig) -> Iterator[str]:
    """Lines for the faster plans that lack something, and for the chosen plan with the reason."""
    index = plans.index(chosen)
    for plan in plans[:index]:
        if plan.lack and plan.memory.total <= memory:
            yield f"not '{plan}', which would have room: {plan.lack}"
    tight = chosen.memory.total > memory
    before = next((plan for plan in reversed(plans[:index]) if plan.memory.total > memory), None)
    yield "".join(
        [
            f"{chosen}, about {gib(chosen.memory.total)} of {gib(memory)}",
            f", because '{before}' would take {gib(before.memory.total)}" if before and not tight else "",
            ". This is more than there is, and is tried all the same" if tight else "",
            f". {warning}" if (warning := warning_of(chosen.config, config)) else "",
        ]
    )


def warning_of(plan: RunConfig, asked: RunConfig) -> str:
    """A warning if the plan changes numbers or costs time in a way that the config `asked` for does not name; else empty."""
    if plan.train.optim == "adamw_8bit" != asked.train.optim:
        return WITH_OTHER_NUMBERS
    return ON_THE_HOST if plan.backend.offload in MOVED and plan.backend.offload != asked.backend.offload else ""


@contextmanager
def carrier(backend: Backend, plan: RunConfig) -> Iterator[Backend]:
    """The backend for a plan: the run's own with the plan's offload setting, or a new one in this process that supports it."""
    if plan.backend.name == backend.config.name:
        backend.config = plan.backend
        yield backend
        return
    other: Backend = BACKENDS.load(plan.backend.name)(plan.backend)
    other.check(plan)
    with other.group.joined():
        yield other


def first_that_runs(
    plans: list[RunConfig],
    attempt: Callable[[RunConfig], Outcome],
    *,
    may_go_on: Callable[[], bool],
    step: int,
    device: torch.device,
) -> Outcome:
    """The result of `attempt` with the first plan whose first step fits the device.

    A step that runs out of memory has changed nothing on disk, so the next plan starts at the same place with the same rows.
    After an error, `may_go_on` says whether another plan may be tried: no step was taken and no other rank waits.
    """
    oldest = torch.zeros((), requires_grad=True) * 1
    for plan, following in zip(plans, [*plans[1:], None], strict=True):
        try:
            return attempt(plan)
        except torch.OutOfMemoryError as error:
            if following is None or not may_go_on():
                raise
            why = reason(error)
        _release_memory(device, oldest)
        warning = warning_of(following, plan)
        warn(
            f"step {step} ran out of memory with '{in_words(plan)}' ({why}). Starting it again with "
            f"'{in_words(following)}'" + (f". {warning}" if warning else "")
        )
    raise AssertionError("there is a plan")


def _release_memory(device: torch.device, oldest: torch.Tensor) -> None:
    """Free the memory of a run that has ended. `oldest` was computed before it, with a gradient.

    An interrupted backward pass leaves its nodes in this thread's queue. A pass over older nodes removes them: the queue takes
    the newest nodes first, and drops those of passes that have ended.
    """
    oldest.backward(retain_graph=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
