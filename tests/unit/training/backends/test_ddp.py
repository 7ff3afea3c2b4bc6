"""What two real ranks with a whole model each make of their gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mftcoder.config.schema import TrainConfig
from mftcoder.training.backends import ddp as ddp_backend
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.optimizer import MasterAdamW
from tests.ranks import Ask, two_ranks

CONFIG = TrainConfig(weight_decay=0.1, max_grad_norm=1.0)


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with two_ranks("ddp") as ask:
        yield ask


class Pair(nn.Module):
    """Two layers; a third that nothing trains."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.idle = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(1, 1)

    def loss(self, rank: int) -> Tensor:
        """Rank 0 uses the first layer, rank 1 both: their sum is the loss of one device."""
        x = torch.tensor([1.0, -2.0, 3.0])
        return self.first(x).square().sum() if rank == 0 else self.first(2 * x).sum() + self.second(x).square().sum()


def take_step(backend: DdpBackend) -> dict[str, Tensor]:
    model = Pair(seed=0)
    optimizer = backend.optimizer(model.named_parameters(), CONFIG)
    backend.backward(model.loss(backend.rank))
    norm = optimizer.step(0.1)
    return {name: weight.detach() for name, weight in model.named_parameters()} | {"norm": norm}


def test_a_step_of_two_ranks_is_the_step_of_the_summed_losses(ask: Ask) -> None:
    model = Pair(seed=0)
    optimizer = MasterAdamW(model.named_parameters(), CONFIG)
    (model.loss(0) + model.loss(1)).backward()
    norm = optimizer.step(0.1)
    expected = {name: weight.detach() for name, weight in model.named_parameters()} | {"norm": norm}
    for found in ask(take_step):
        torch.testing.assert_close(found, expected)
    assert expected["idle.weight"].equal(Pair(seed=0).idle.weight)  # without a gradient on any rank: not even decayed


def gradients_in_small_messages(backend: DdpBackend) -> tuple[list[Any], int]:
    weights = [torch.zeros(n + 1) for n in range(4)]
    own = [torch.full_like(w, 10.0**n) if n < 3 and (n + backend.rank) % 2 else None for n, w in enumerate(weights)]
    before, ddp_backend.BUCKET_ELEMENTS = ddp_backend.BUCKET_ELEMENTS, 3
    count = backend._count
    try:
        sums = backend._sum_gradients(weights, own)
    finally:
        ddp_backend.BUCKET_ELEMENTS = before
    return [None if one is None else one.tolist() for one in sums], backend._count - count


def test_gradients_find_their_weights_again_in_whatever_messages_they_travel(ask: Ask) -> None:
    """Each has one on one rank, and the last on none; tensors of 1, 2 and 3 elements in messages of 3."""
    for gradients, messages in ask(gradients_in_small_messages):
        assert gradients == [[1.0], [10.0] * 2, [100.0] * 3, None]
        assert messages == 1 + 2  # which weights have one; 1 and 2 elements together, and 3


class Whole:
    """What `place` takes hold of."""

    def __init__(self, module: nn.Module):
        self.module = module


def place_other_weights(backend: DdpBackend) -> tuple[Tensor, Tensor]:
    model = Pair(seed=backend.rank)
    model.second.requires_grad_(False)
    backend.place(Whole(model), CONFIG)  # type: ignore[arg-type]
    return model.first.weight.detach(), model.second.weight.detach()


def test_trained_weights_are_those_of_the_first_rank_and_frozen_ones_stay(ask: Ask) -> None:
    for rank, (trained, frozen) in enumerate(ask(place_other_weights)):
        assert trained.equal(Pair(seed=0).first.weight)
        assert frozen.equal(Pair(seed=rank).second.weight)
