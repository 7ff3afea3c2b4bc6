"""A balancer outside of `mft train` gives the weights that it gives inside."""

import json
from typing import Any

import numpy as np
import pytest

from mftcoder.balancing.base import RunFacts, TaskLosses, build_balancer
from mftcoder.balancing.standalone import Balancer, _section
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS

TASKS = ("a", "b")


def measured(step: int, which: str) -> dict[str, float]:
    return {"a": 2.0 / (1 + 0.05 * step), "b": 3.0 - 0.02 * step + (0.1 if which == "validation" else 0.0)}


def observed(balancer: Balancer, steps: range) -> list[dict[str, float]]:
    found = []
    for step in steps:
        validation = measured(step, "validation") if balancer.wants_validation else None
        norms = {"a": 1.0 + step, "b": 2.0} if balancer.wants_gradient_norms else None
        found.append(balancer.observe(measured(step, "train"), validation, norms))
    return found


@pytest.mark.parametrize("method", BALANCERS.names())
def test_every_method_goes_on_from_its_state_to_the_last_bit(method: str) -> None:
    whole = observed(Balancer(method, TASKS, total_steps=40), range(40))
    first = Balancer(method, TASKS, total_steps=40)
    begun = observed(first, range(17))
    second = Balancer(method, TASKS, total_steps=40)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.weights == first.weights
    assert begun + observed(second, range(17, 40)) == whole
    assert all(sum(weights.values()) == pytest.approx(1) for weights in whole)


def test_the_weights_are_those_of_the_method_itself() -> None:
    options: dict[str, Any] = {"warmup_steps": 2, "window": 8}
    balancer = Balancer("coba", TASKS, total_steps=40, weights={"a": 1, "b": 2}, **options)
    facts = RunFacts(np.array([1.0, 2.0]), 0, 40, 1, np.array([40, 40]), np.array([1, 1]))
    method = build_balancer(_section("coba", options), facts, TASKS)
    one = np.ones(2, np.int64)
    for step in range(1, 20):
        train, validation = measured(step, "train"), measured(step, "validation")
        given = (TaskLosses(np.array(list(losses.values())), one, one) for losses in (train, validation))
        assert list(balancer.observe(train, validation).values()) == method.observe(step, *given).values.tolist()


def test_steps_between_two_updates_are_taken_together() -> None:
    """dwa looks at every second step: two steps with losses 1 and 3 are one observation of 2."""
    pairs, means = (Balancer("dwa", TASKS, total_steps=8, update_interval=n) for n in (2, 1))
    for a, b in ((2.0, 5.0), (1.0, 4.5), (0.5, 4.4)):
        pairs.observe({"a": a - 0.25, "b": b - 1})
        pairs.observe({"a": a + 0.25, "b": b + 1})
        means.observe({"a": a, "b": b})
    assert pairs.weights == pytest.approx(means.weights) and pairs.weights["a"] != 0.5


def test_released_coba_does_not_begin_without_the_validation_that_it_divides_by() -> None:
    losses = {"a": 2.0, "b": 1.0}
    balancer = Balancer("coba", list(losses), total_steps=10, variant="released")
    with pytest.raises(ConfigError, match=r"before the first step\. Call evaluated\(\) before the first observe\(\)"):
        balancer.observe(losses, losses)
    with pytest.raises(ConfigError, match=r"losses: are those of \['a'\]; the tasks are \['a', 'b'\]"):
        balancer.evaluated({"a": 2.0})
    balancer.evaluated(losses)
    balancer.observe(losses, losses)
    resumed = Balancer("coba", list(losses), total_steps=10, variant="released")
    resumed.load_state_dict(balancer.state_dict())
    assert resumed.observe(losses, losses) == balancer.observe(losses, losses)


def test_an_absent_task_is_left_out() -> None:
    balancer = Balancer("uncertainty", TASKS, total_steps=8)
    assert balancer.observe({"a": 3.0})["a"] < 0.5


def test_misfits_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"unknown balancer 'cobra'\. Did you mean 'coba'"):
        Balancer("cobra", TASKS, total_steps=8)
    with pytest.raises(ConfigError, match=r"balancer\.gain: unknown option\. It is an option of"):
        Balancer("coba", TASKS, total_steps=8, gain=2)
    with pytest.raises(ConfigError, match="weights: are those of"):
        Balancer("coba", TASKS, total_steps=8, weights={"a": 1})
    with pytest.raises(ConfigError, match="step 1 needs validation losses"):
        Balancer("coba", TASKS, total_steps=8).observe({"a": 1.0, "b": 1.0})
    with pytest.raises(ConfigError, match=r"train: are those of \['c'\]"):
        Balancer("dwa", TASKS, total_steps=8).observe({"c": 1.0})


@pytest.mark.parametrize("method", BALANCERS.names())
def test_the_state_of_another_balancer_is_refused(method: str) -> None:
    balancer = Balancer(method, TASKS, total_steps=8)
    other = "uniform" if method != "uniform" else "coba"
    for state in (
        Balancer(method, ("b", "a"), total_steps=8).state_dict(),
        Balancer(method, (*TASKS, "c"), total_steps=8).state_dict(),
        Balancer(other, TASKS, total_steps=8).state_dict(),
        {},
        None,
    ):
        with pytest.raises(ConfigError, match="state: is"):
            balancer.load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"total_steps": 0}, {"total_steps": 2.5}, {"total_steps": "9"}, {"total_steps": 9, "epoch_steps": -1}]
)
def test_numbers_of_steps_are_whole_and_above_0(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="_steps: must be a whole number of at least 1"):
        Balancer("coba", TASKS, **wrong)


def test_a_loss_is_a_number_and_may_be_a_tensor_with_a_gradient() -> None:
    import torch

    balancer = Balancer("famo", TASKS, total_steps=8)
    balancer.observe({"a": torch.tensor(1.0, requires_grad=True), "b": 2.0})  # type: ignore[dict-item]
    for wrong in (None, "1"):
        with pytest.raises(ConfigError, match="train: a: must be a number"):
            balancer.observe({"a": wrong, "b": 2.0})  # type: ignore[dict-item]
