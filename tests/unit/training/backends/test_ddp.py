"""What two real ranks with a whole model each make of their gradients, and when."""

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import TrainConfig
from mftcoder.data.batches.loader import StepData
from mftcoder.errors import TrainingError
from mftcoder.training.backends import ddp as ddp_backend
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.forward.gradient_norms import gradient_norms
from mftcoder.training.losses.objective import Objective
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import train_step
from tests.ranks import Ask, two_ranks
from tests.unit.training.losses.test_objective import language_model, samples, step_data

CONFIG = TrainConfig(weight_decay=0.1, max_grad_norm=1.0)
WEIGHTS = TaskWeights(np.asarray([1.0, 3.0]))


class Net(nn.Module):
    """Five layers: `both` is used by both ranks, `even` and `odd` by one of them, `early` not in its last pass, `idle` by nobody."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.idle, self.early, self.odd, self.even, self.both = (nn.Linear(3, 2, dtype=dtype) for _ in range(5))
        self.turned = nn.Parameter(torch.randn(3, 2, dtype=dtype).t())  # not row by row in memory

    def losses(self, rank: int) -> list[Tensor]:
        """The micro-batches of a rank: rank 0 has three, rank 1 has one. The sum of all is the loss of one device."""
        x = torch.tensor([1.0, -2.0, 3.0], dtype=self.turned.dtype)
        if rank == 1:
            return [self.both(2 * x).sum() + self.odd(x).square().sum()]
        passes = [self.both(x * (n + 1)).square().sum() + (self.turned @ x).sum() for n in range(3)]
        return [passes[0] + self.early(x).sum(), passes[1], passes[2] + self.even(x).square().sum()]


def weights_of(model: Net) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def take_steps(backend: DdpBackend, dtype: torch.dtype, bucket_bytes: int) -> dict[str, Tensor]:
    model = Net(dtype=dtype)
    with mock.patch.object(ddp_backend, "BUCKET_BYTES", bucket_bytes):
        optimizer = backend.optimizer(model.named_parameters(), CONFIG)
    for _ in range(2):
        *passes, last = model.losses(backend.group.rank)
        for objective in passes:
            optimizer.backward(objective, last=False)
        optimizer.backward(last, last=True)
        optimizer.sum_gradients()
        norm = optimizer.step(0.1)
    return weights_of(model) | {"norm": norm}


@pytest.mark.parametrize("bucket_bytes", [1, 60, 25 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_two_ranks_are_those_of_the_summed_losses(ask: Ask, dtype: torch.dtype, bucket_bytes: int) -> None:
    """With other passes and other weights on each rank, a weight a message, some, and all in one."""
    model = Net(dtype=dtype)
    optimizer = MasterAdamW(model.named_parameters(), CONFIG)
    for _ in range(2):
        for objective in model.losses(0) + model.losses(1):
            optimizer.backward(objective, last=False)
        norm = optimizer.step(0.1)
    expected = weights_of(model) | {"norm": norm}
    for found in ask(take_steps, dtype, bucket_bytes):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert expected["idle.weight"].equal(Net(dtype=dtype).idle.weight)  # no gradient on any rank: not even decayed


def step_without_a_pass(backend: DdpBackend) -> list[dict[str, Tensor]]:
    model, seen = Net(), []
    optimizer = backend.optimizer(model.named_parameters(), CONFIG.model_copy(update={"on_nonfinite": "skip"}))
    for factor in (math.nan, 1.0):
        if backend.group.rank == 1:
            optimizer.backward(model.losses(1)[0] * factor, last=True)
        optimizer.sum_gradients()
        optimizer.step(0.1)
        seen.append(weights_of(model))
    return seen


def test_a_rank_without_a_pass_takes_the_steps_and_a_step_that_is_not_finite_changes_nothing(ask: Ask) -> None:
    (after_nan, after), other = ask(step_without_a_pass)
    torch.testing.assert_close([after_nan, after], other, rtol=0, atol=0)
    start = weights_of(Net())
    torch.testing.assert_close(after_nan, start, rtol=0, atol=0)
    assert not after["both.weight"].equal(start["both.weight"]) and after["even.weight"].equal(start["even.weight"])


def traced_steps(backend: DdpBackend) -> list[list[tuple[str, int]]]:
    """What happens in the passes of two steps of two micro-batches: gradients of a decoder layer, and sums that start."""
    model, events = language_model(), list[tuple[str, int]]()
    named = list(model.module.named_parameters())
    with mock.patch.object(ddp_backend, "BUCKET_BYTES", 1 << 12):
        optimizer = backend.optimizer(named, CONFIG)
    for number, layer in enumerate(model.decoder_layers()):
        for weight in layer.parameters():
            weight.register_post_accumulate_grad_hook(lambda _, number=number: events.append(("gradient", number)))
    data = step_data(samples(), 4)
    own = StepData(data.micro_batches[2 * backend.group.rank :][:2], data.counts)
    all_reduce, steps = dist.all_reduce, []

    def traced(values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        events.append(("sum" if keywords.get("async_op") else "wait", values.numel()))
        return all_reduce(values, *arguments, **keywords)

    with mock.patch.object(dist, "all_reduce", traced):
        for first in (True, False):
            train_step(model, own, WEIGHTS, Objective(), optimizer, 0.1, backend, first=first)
            steps.append(events.copy())
            events.clear()
    return steps


def test_sums_start_while_the_last_pass_of_a_step_still_runs(ask: Ask) -> None:
    """Once a step, in the same order on both ranks, each as soon as it can. A process's first step waits for the end of its passes."""
    steps, others = ask(traced_steps)
    for step, other in zip(steps, others, strict=True):
        assert [event for event in step if event[0] != "gradient"] == [e for e in other if e[0] != "gradient"]
    first, second = steps
    sums = [event for event in first if event[0] == "sum"]
    assert len(sums) > 8 and sums == [event for event in second if event[0] == "sum"]
    gradients = [place for place, event in enumerate(first) if event[0] == "gradient"]
    assert first.index(sums[0]) > gradients[-1]

    starts = [place for place, event in enumerate(second) if event[0] == "sum"]
    gradients = [place for place, event in enumerate(second) if event[0] == "gradient"]
    of_one_pass = len(gradients) // 2
    assert gradients[of_one_pass - 1] < starts[0]  # none in the first of the two passes
    last_pass = gradients[of_one_pass:]
    first_of_lower_layer = next(place for place in last_pass if second[place] == ("gradient", 0))
    assert sum(start < last_pass[0] for start in starts) == 2  # the head's and that of the upper layer's last product
    assert sum(start < first_of_lower_layer for start in starts) > len(starts) / 3
    assert len(starts) - 3 <= sum(start < last_pass[-1] for start in starts)


def steps_with_passes_between(backend: DdpBackend, between: bool) -> dict[str, Tensor]:
    """Two steps; GradNorm's passes before the second, and a step's own forward pass for the focal factors in both."""
    model = language_model()
    with mock.patch.object(ddp_backend, "BUCKET_BYTES", 1 << 12):
        optimizer = backend.optimizer(model.module.named_parameters(), CONFIG)
    data = step_data(samples(), 4)
    own = StepData(data.micro_batches[2 * backend.group.rank :][:2], data.counts)
    for _ in range(2):
        train_step(model, own, WEIGHTS, Objective(focal="task"), optimizer, 0.1, backend)
        if between:
            assert np.isfinite(gradient_norms(model, own, backend, layer=-1)).all()
    return {name: weight.detach() for name, weight in model.module.named_parameters()}


def test_passes_beside_a_step_add_nothing_to_its_gradients(ask: Ask) -> None:
    with_them, without = ask(steps_with_passes_between, True)[0], ask(steps_with_passes_between, False)[0]
    torch.testing.assert_close(with_them, without, rtol=0, atol=0)


def step_on_the_first_only(backend: DdpBackend) -> str:
    model = Net()
    optimizer = backend.optimizer(model.named_parameters(), CONFIG)
    if backend.group.rank == 0:
        optimizer.backward(model.both(torch.ones(3)).sum(), last=True)
        try:
            optimizer.sum_gradients()
        except TrainingError as error:
            return str(error)
    return ""


def test_a_rank_that_does_not_come_to_the_sums_is_named() -> None:
    """Though they started inside the pass. Takes the five seconds that ranks wait for each other here."""
    with two_ranks("ddp", timeout_seconds=5) as ask:
        error, nothing = ask(step_on_the_first_only)
    assert error.startswith("rank 0: 'summing gradients' (number 1) failed: rank 1 has not come to it")
    assert nothing == ""


class Whole:
    """What `place` takes hold of."""

    def __init__(self, module: nn.Module):
        self.module = module


def place_other_weights(backend: DdpBackend) -> tuple[Tensor, Tensor]:
    model = Net(seed=backend.group.rank)
    model.odd.requires_grad_(False)
    backend.place(Whole(model), CONFIG)  # type: ignore[arg-type]
    return model.both.weight.detach(), model.odd.weight.detach()


def test_trained_weights_are_those_of_the_first_rank_and_frozen_ones_stay(ask: Ask) -> None:
    for rank, (trained, frozen) in enumerate(ask(place_other_weights)):
        assert trained.equal(Net(seed=0).both.weight)
        assert frozen.equal(Net(seed=rank).odd.weight)
