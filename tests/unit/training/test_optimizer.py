"""Schedules end where they should; master weights keep what bfloat16 would lose."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mftcoder.config.schema import TrainConfig
from mftcoder.training.optimizer import LocalGradients, MasterAdamW, decays, learning_rate, warmup_steps


def config(**fields: object) -> TrainConfig:
    return TrainConfig(learning_rate=1.0, **fields)  # type: ignore[arg-type]


def test_warmup_rises_linearly_to_the_peak() -> None:
    rates = [learning_rate(step, 100, config(warmup_steps=4)) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_warmup_may_be_a_fraction_of_all_steps() -> None:
    assert warmup_steps(30, config(warmup_steps=0.1)) == 3
    assert warmup_steps(30, config(warmup_steps=7)) == 7


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_schedule_ends_at_min_lr_on_the_last_step(shape: str) -> None:
    rates = [learning_rate(step, 50, config(lr_scheduler_type=shape, min_lr=0.1)) for step in range(50)]
    assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_cosine_is_halfway_down_in_the_middle() -> None:
    assert learning_rate(50, 101, config(lr_scheduler_type="cosine")) == pytest.approx(0.5)


def test_constant_stays() -> None:
    assert {learning_rate(step, 10, config(lr_scheduler_type="constant")) for step in range(10)} == {1.0}


def test_wsd_stays_at_the_peak_and_falls_linearly_in_the_last_steps() -> None:
    wsd = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2, "min_lr": 0.2}
    for decay in (4, 0.4):
        rates = [learning_rate(step, 10, config(**wsd, decay_steps=decay)) for step in range(10)]
        assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    tenth = [learning_rate(step, 50, config(**wsd)) for step in range(50)]
    assert tenth[44] == 1.0 and tenth[-5:] == pytest.approx([0.84, 0.68, 0.52, 0.36, 0.2])
    short = [learning_rate(step, 3, config(**wsd, decay_steps=10)) for step in range(3)]
    assert short[-1] == pytest.approx(0.2)  # a run shorter than its decay still ends at min_lr


def test_decay_steps_of_another_schedule_are_refused() -> None:
    with pytest.raises(ValidationError, match="decay_steps: is for lr_scheduler_type: warmup_stable_decay; cosine"):
        config(decay_steps=5)
    with pytest.raises(ValidationError, match="neither a whole number"):
        config(lr_scheduler_type="warmup_stable_decay", decay_steps=2.5)


def test_matrices_decay_and_vectors_do_not() -> None:
    assert decays("layer.weight", torch.zeros(2, 2))
    assert not decays("norm.weight", torch.zeros(2)) and not decays("layer.bias", torch.zeros(2, 2))


def step_on(layer: nn.Linear, optimizer: MasterAdamW, rate: float) -> float:
    layer(torch.ones(1, layer.in_features, dtype=layer.weight.dtype)).sum().backward()
    return float(optimizer.step(rate))


def test_float32_parameters_follow_torchs_adamw_exactly() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = TrainConfig(max_grad_norm=None, weight_decay=0.0)
    optimizer = MasterAdamW(ours.named_parameters(), settings)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for _ in range(5):
        step_on(ours, optimizer, 0.1)
        theirs(torch.ones(1, 4)).sum().backward()
        reference.step()
        reference.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)


def test_bfloat16_parameters_take_steps_below_their_own_resolution() -> None:
    layer = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(weight_decay=0.0))
    for _ in range(40):
        step_on(layer, optimizer, 1e-4)  # bfloat16 cannot tell 1 - 1e-4 from 1
    assert optimizer.masters[0].mean().item() == pytest.approx(1 - 40e-4, abs=2e-4)
    assert torch.equal(layer.weight, optimizer.masters[0].bfloat16()) and (layer.weight < 1).all()


def test_micro_batches_of_bfloat16_gradients_add_up_in_float32() -> None:
    layer = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(max_grad_norm=None))
    for scale in (1.0, 2**-10):  # in bfloat16, 1 + 2^-10 is 1
        (layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum() * scale).backward()
    assert layer.weight.grad is None
    assert optimizer.step(0.0).item() == pytest.approx(2 * (1 + 2**-10), rel=1e-7)


def test_a_single_bfloat16_gradient_is_not_copied_before_the_step() -> None:
    layer = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    gradients = LocalGradients(list(layer.parameters()))
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    (found,) = gradients.take()
    assert found is not None and found.dtype == torch.bfloat16
    assert gradients.take() == [None]


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() -> None:
    layer = nn.Linear(4, 3, bias=False)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(max_grad_norm=1.0))
    assert step_on(layer, optimizer, 0.0) == pytest.approx(math.sqrt(12))


@pytest.mark.parametrize(("on_nonfinite", "moves"), [("stop", False), ("skip", True)])
def test_after_a_step_that_is_not_finite_a_run_that_stops_changes_nothing_more(on_nonfinite: str, moves: bool) -> None:
    """On a GPU the host reads a step after later ones have run: these must not change the model either."""
    layer = nn.Linear(4, 3, bias=False)
    optimizer = MasterAdamW(layer.named_parameters(), config(on_nonfinite=on_nonfinite))
    step_on(layer, optimizer, 0.1)
    before = layer.weight.detach().clone()
    layer(torch.full((1, 4), math.nan)).sum().backward()
    optimizer.step(0.1)
    assert torch.equal(layer.weight, before)
    step_on(layer, optimizer, 0.1)
    assert torch.equal(layer.weight, before) != moves
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step(0.1, torch.tensor([1.0, math.inf]))
    assert torch.equal(layer.weight, before) != moves


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, dtype=dtype)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig())
    for _ in range(3):
        step_on(layer, optimizer, 1e-2)
    twin = nn.Linear(4, 3, dtype=dtype)
    twin.load_state_dict(layer.state_dict())
    resumed = MasterAdamW(twin.named_parameters(), TrainConfig())
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        step_on(layer, optimizer, 1e-2)
        step_on(twin, resumed, 1e-2)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(optimizer.masters[0], resumed.masters[0])


@pytest.mark.parametrize("kind", [{}, {"master_weights": "stochastic_rounding"}, {"optim": "adamw_8bit"}])
@pytest.mark.parametrize("change", [{"weight_decay": 0.9}, {"adam_beta2": 0.1}, {"adam_epsilon": 10.0}])
def test_settings_changed_after_the_checkpoint_have_an_effect(kind: dict[str, Any], change: dict[str, Any]) -> None:
    if "optim" in kind:
        pytest.importorskip("bitsandbytes")
    dtype = torch.bfloat16 if "master_weights" in kind else torch.float32
    torch.manual_seed(0)
    layer = nn.Linear(128, 64, bias=False, dtype=dtype)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(**kind))
    step_on(layer, optimizer, 0.1)
    state, after = optimizer.state_dict(), []
    for settings in ({}, change):
        twin = nn.Linear(128, 64, bias=False, dtype=dtype)
        twin.load_state_dict(layer.state_dict())
        resumed = MasterAdamW(twin.named_parameters(), TrainConfig(**kind, **settings))
        resumed.load_state_dict(deepcopy(state))
        step_on(twin, resumed, 0.1)
        after.append(twin.weight.detach())
    assert not torch.equal(*after)


def rounded_run(steps: int, state: dict[str, Any] | None = None, weight: torch.Tensor | None = None) -> Any:
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    if weight is not None:
        layer.weight.data.copy_(weight)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(master_weights="stochastic_rounding"))
    if state:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        layer(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1e-4)
    return layer.weight.detach(), optimizer.state_dict()


def test_stochastic_rounding_is_right_on_average_without_float32_copies() -> None:
    weight, state = rounded_run(20)
    assert weight.float().mean().item() == pytest.approx(1 - 20e-4, abs=2e-4)  # to the nearest, none would move
    assert state["masters"] == []


def test_stochastic_rounding_continues_bit_for_bit() -> None:
    whole, _ = rounded_run(6)
    half, state = rounded_run(3)
    resumed, _ = rounded_run(3, state, half)
    assert torch.equal(whole, resumed)


def test_8_bit_moments_follow_adamw_closely_and_hold_a_byte_each() -> None:
    pytest.importorskip("bitsandbytes")
    layers = [nn.Linear(128, 128, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [
        MasterAdamW(layer.named_parameters(), TrainConfig(optim=optim))
        for layer, optim in zip(layers, ("adamw", "adamw_8bit"), strict=True)
    ]
    before = layers[0].weight.detach().clone()
    for seed in range(10):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            torch.manual_seed(seed)
            (layer(torch.randn(8, 128)) * torch.randn(8, 128)).sum().backward()
            optimizer.step(1e-3)
    moved, apart = (layers[0].weight - before).norm(), (layers[0].weight - layers[1].weight).norm()
    assert apart < 0.1 * moved
    eight_bit: Any = optimizers[1]._adamw
    assert {state["state1"].dtype for state in eight_bit.state.values()} == {torch.uint8}


def test_8_bit_moments_change_nothing_in_a_step_that_is_not_finite() -> None:
    pytest.importorskip("bitsandbytes")
    layer = nn.Linear(128, 128, bias=False)
    optimizer = MasterAdamW(layer.named_parameters(), TrainConfig(optim="adamw_8bit"))
    before = layer.weight.detach().clone()
    layer(torch.full((1, 128), math.nan)).sum().backward()
    optimizer.step(1e-3)
    assert torch.equal(layer.weight, before)
