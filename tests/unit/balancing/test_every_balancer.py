"""Properties that every balancer of the table must have."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mftcoder.balancing.base import RunFacts, TaskBalancer, TaskLosses, TaskWeights, build_balancer
from mftcoder.config.balancer import BalancerConfig, option_names, options_type, read_balancer
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS

NAMES = BALANCERS.names()
STARRED = [name for name in NAMES if "signal" in option_names(name)]
CONFIGS: list[BalancerConfig] = [
    read_balancer(section)
    for section in (
        *({"name": name} for name in NAMES),
        *({"name": name, "signal": "validation"} for name in STARRED),
        {"name": "coba", "variant": "released"},
        {"name": "coba", "update_interval": 3, "val_batches": 2},
        {"name": "famo", "variant": "released"},
        {"name": "selfpaced", "update_interval": 3, "val_batches": 2},
    )
]


def described(config: BalancerConfig) -> str:
    return " ".join(f"{key}={value}" for key, value in config.model_dump(exclude_defaults=True).items()) or config.name


TASKS = 4
every_method = pytest.mark.parametrize("config", CONFIGS, ids=described)


def noisy(steps: int, *, absent: bool = True) -> np.ndarray:
    """Mean train losses [steps, K]. In some steps a task is absent."""
    rng = np.random.default_rng(7)
    falling = np.exp(-np.outer(np.arange(steps), [0.1, 0.03, 0.01, 0.0])) + 0.5 + 0.05 * rng.random((steps, TASKS))
    if absent:
        falling[rng.random(falling.shape) < 0.15] = np.nan
    return falling


def drive(
    balancer: TaskBalancer, history: np.ndarray, losses: Callable[[Sequence[float]], TaskLosses], start: int = 1
) -> list[np.ndarray]:
    """The weights after each due step. Measures everything that the method asks for."""
    given = []
    summed = TaskLosses.zeros(TASKS)
    if start == 1:
        balancer.evaluated(0, losses(np.nan_to_num(history[0], nan=1.0)))
    for step in range(start, len(history) + 1):
        summed = summed + losses(history[step - 1])
        if not balancer.due(step):
            continue
        rows = balancer.validation_rows(step)
        asked = {row.task for row in rows}
        held_out = np.where([task in asked for task in range(TASKS)], np.nan_to_num(history[step - 1], nan=0.9), np.nan)
        norms = (
            np.where(np.isnan(history[step - 1]), np.nan, 1.0 + step % 3)
            if balancer.gradient_layer(step) is not None
            else None
        )
        weights = balancer.observe(step, summed, losses(held_out) if rows else None, norms)
        given.append(weights.values)
        summed = TaskLosses.zeros(TASKS)
    return given


@every_method
def test_weights_are_non_negative_and_sum_to_one(config: BalancerConfig, facts: Callable, losses: Callable) -> None:
    for weights in drive(build_balancer(config, facts(TASKS), tuple("abcd")), noisy(80), losses):
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)


@every_method
def test_resumes_in_the_middle_to_the_last_bit(config: BalancerConfig, facts: Callable, losses: Callable) -> None:
    history = noisy(80)
    whole = build_balancer(config, facts(TASKS), tuple("abcd"))
    expected = drive(whole, history, losses)
    for cut in (10, 33, 60):
        first = build_balancer(config, facts(TASKS), tuple("abcd"))
        while cut % 5 or not (first.due(cut) or cut % 15 == 0):
            cut += 1
        before = drive(first, history[:cut], losses)
        second = build_balancer(config, facts(TASKS), tuple("abcd"))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        after = drive(second, history, losses, start=cut + 1)
        np.testing.assert_array_equal(before + after, expected)
        assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name != "random"], ids=described)
def test_stationary_losses_give_steady_weights(config: BalancerConfig, facts: Callable, losses: Callable) -> None:
    still = np.tile([2.0, 1.0, 0.5, 0.1], (3000, 1))
    long_run = facts(TASKS, total_steps=3000, fresh_steps=np.full(TASKS, 3000))
    given = drive(build_balancer(config, long_run, tuple("abcd")), still, losses)
    if config.name in ("gradnorm", "uncertainty"):
        np.testing.assert_allclose(
            given[-1], given[-1 - len(given) // 10], atol=0.02
        )  # these two learn on, towards a rest
    else:
        np.testing.assert_allclose(given, np.broadcast_to(given[1], (len(given), TASKS)) if given else given, atol=1e-6)


@every_method
def test_a_task_that_never_appears_keeps_a_finite_weight(
    config: BalancerConfig, facts: Callable, losses: Callable
) -> None:
    history = noisy(60)
    history[:, 2] = np.nan
    for weights in drive(build_balancer(config, facts(TASKS), tuple("abcd")), history, losses):
        assert np.isfinite(weights).all()


@every_method
def test_losses_of_exactly_0_give_finite_weights_and_no_warning(
    config: BalancerConfig, facts: Callable, losses: Callable
) -> None:
    """A memorized task in bfloat16: solved from the start, from step 20 on, at first only, now and then."""
    history = noisy(60, absent=False)
    history[:, 0], history[20:, 1], history[:8, 2], history[15::4, 3] = 0.0, 0.0, 0.0, 0.0
    balancer = build_balancer(config, facts(TASKS), tuple("abcd"))
    assert np.isfinite(drive(balancer, history, losses)).all()
    assert all(len(values) == TASKS for values in balancer.signals.values())


@every_method
def test_configured_weights_stay_a_factor(config: BalancerConfig, facts: Callable, losses: Callable) -> None:
    equal = facts(TASKS)
    doubled = facts(TASKS, weights=np.array([2.0, 1.0, 1.0, 0.0]))
    history = noisy(12, absent=False)
    plain = drive(build_balancer(config, equal, tuple("abcd")), history, losses)
    other = drive(build_balancer(config, doubled, tuple("abcd")), history, losses)
    for before, after in zip(plain, other, strict=True):
        if config.name != "pace":  # pace looks at its own weights, so it may move on differently
            np.testing.assert_allclose(after, TaskWeights(before * doubled.weights).values, atol=1e-12)
        assert after[3] == 0.0


@every_method
def test_the_order_of_the_tasks_does_not_matter(config: BalancerConfig, facts: Callable, losses: Callable) -> None:
    if config.name == "random":
        pytest.skip("random weights belong to places, not to tasks")
    history = noisy(60, absent=False)
    back = [3, 2, 1, 0]
    needed = build_balancer(config, facts(TASKS), tuple("abcd")).needs_validation
    run = facts(TASKS, validation_rows=np.full(TASKS, 6 if needed else 0))  # pace asks for them in turn
    forward = drive(build_balancer(config, run, tuple("abcd")), history, losses)
    reverse = drive(build_balancer(config, run, tuple("abcd")), history[:, back], losses)
    np.testing.assert_allclose(
        np.array(forward).reshape(-1, TASKS)[:, back], np.array(reverse).reshape(-1, TASKS), atol=1e-9
    )


@every_method
def test_a_task_without_validation_rows_is_named_where_they_are_needed(config: BalancerConfig, facts: Callable) -> None:
    tasks = ("tests", "docs", "repair")
    lacking: RunFacts = facts(3, validation_rows=np.array([5, 0, 0]))
    if not build_balancer(config, facts(3), tasks).needs_validation:
        build_balancer(config, lacking, tasks)
        return
    with pytest.raises(ConfigError) as raised:
        build_balancer(config, lacking, tasks)
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["tasks.docs", "tasks.repair"]


@every_method
def test_asks_for_validation_rows_that_exist(config: BalancerConfig, facts: Callable) -> None:
    few, none = (facts(TASKS, validation_rows=rows) for rows in (np.array([1, 2, 3, 40]), np.zeros(TASKS, np.int64)))
    needed = build_balancer(config, few, tuple("abcd")).needs_validation
    for run in (few,) if needed else (few, none):
        balancer = build_balancer(config, run, tuple("abcd"))
        asked = [row for step in range(1, 200) if balancer.due(step) for row in balancer.validation_rows(step)]
        assert all(0 <= row.row < run.validation_rows[row.task] for row in asked)
        assert asked or not needed


@pytest.mark.parametrize("name", NAMES)
def test_options_have_the_methods_own_name(name: str) -> None:
    assert options_type(name)().name == name


@every_method
def test_only_a_method_that_says_so_reads_gradients(config: BalancerConfig, facts: Callable) -> None:
    """Backends and memory plans read this from the options, before a balancer is built."""
    balancer = build_balancer(config, facts(TASKS), tuple("abcd"))
    layers = {balancer.gradient_layer(step) for step in range(1, 50) if balancer.due(step)}
    assert bool(layers - {None}) == config.reads_gradients
