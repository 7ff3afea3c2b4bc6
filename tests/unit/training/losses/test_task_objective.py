"""The objective for other loops is that of `mft train`, for every split of a step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.balancing.base import TaskWeights
from mftcoder.balancing.standalone import Balancer
from mftcoder.data.batches.loader import PackedBatch, StepCounts
from mftcoder.errors import ConfigError
from mftcoder.training.losses.objective import NORMALIZATIONS, Objective, token_coefficients
from mftcoder.training.losses.task_objective import TaskObjective

TASKS = ("a", "b", "c")
WEIGHTS: Mapping[str, float] = {"a": 0.5, "b": 0.2, "c": 0.3}


def packed_step(rows: int = 4, length: int = 12) -> PackedBatch:
    """Rows of three samples, of tasks a and b only; the last sample of each row is padding in half of them."""
    random = torch.Generator().manual_seed(0)
    position_ids = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3]).repeat(rows, 1)
    task_ids = torch.tensor([0] * 3 + [1] * 5 + [0] * 4).repeat(rows, 1)
    targets = torch.randint(0, 9, (rows, length), generator=random)
    targets[torch.rand(rows, length, generator=random) < 0.4] = -100
    targets[: rows // 2, 8:], task_ids[: rows // 2, 8:] = -100, -1
    return PackedBatch(targets, targets, position_ids, task_ids, torch.empty(0, 2, dtype=torch.int64))


def counts_of(batch: PackedBatch) -> StepCounts:
    tokens, samples = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for row in range(len(batch.targets)):
        for part in (slice(0, 3), slice(3, 8), slice(8, 12)):
            trained = int((batch.targets[row, part] != -100).sum())
            task = int(batch.task_ids[row, part][0])
            if trained:
                tokens[task] += trained
                samples[task] += 1
    return StepCounts(tokens, samples, 0)


@pytest.mark.parametrize("absent_task", ["renormalize", "keep"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_it_is_the_objective_of_mft_train(normalization: str, absent_task: str) -> None:
    batch, losses = packed_step(), torch.rand(4, 12, generator=torch.Generator().manual_seed(1))
    objective = TaskObjective(TASKS, normalization=normalization, absent_task=absent_task, weights=WEIGHTS)
    found = objective(losses, batch.targets, batch.task_ids, position_ids=batch.position_ids)
    weights = TaskWeights(np.array(list(WEIGHTS.values())))
    of_train = token_coefficients(batch, counts_of(batch), weights, Objective(normalization, absent_task))
    assert found.item() == pytest.approx((losses * of_train).sum().item(), rel=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_it_does_not_depend_on_how_the_step_is_split(normalization: str) -> None:
    batch, losses = packed_step(), torch.rand(4, 12, generator=torch.Generator().manual_seed(1))
    objective = TaskObjective(TASKS, normalization=normalization)
    parts = [(batch.targets[rows], batch.task_ids[rows], batch.position_ids[rows]) for rows in (slice(1), slice(1, 4))]
    counts = objective.count(*parts)
    whole = objective(losses, batch.targets, batch.task_ids, position_ids=batch.position_ids)
    split = sum(
        objective(part, *rows[:2], counts=counts, position_ids=rows[2])
        for part, rows in zip(losses.split([1, 3]), parts, strict=True)
    )
    assert float(split) == pytest.approx(whole.item(), rel=1e-6)


def test_a_row_is_a_sample_where_nothing_says_otherwise() -> None:
    """Task a: one sample of two tokens, mean 1.5; task b: two samples of one token, 3 and 5, mean 4."""
    targets = torch.tensor([[1, 1], [-100, 1], [1, -100]])
    losses = torch.tensor([[1.0, 2.0], [9.0, 3.0], [5.0, 9.0]])
    objective = TaskObjective(["a", "b"], normalization="task_sample", weights={"a": 1, "b": 3})
    assert objective(losses, targets, torch.tensor([0, 1, 1])).item() == pytest.approx((1.5 + 3 * 4) / 4)
    assert objective.mean_losses(losses, targets, torch.tensor([0, 1, 1])) == {"a": 1.5, "b": 4.0}


def test_what_is_not_trained_has_no_gradient_even_where_its_loss_is_not_finite() -> None:
    losses = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    TaskObjective(["a"])(losses, torch.tensor([[3, -100]]), torch.tensor([0])).backward()
    assert losses.grad is not None and losses.grad.tolist() == [[1.0, 0.0]]


def test_inputs_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"unknown value 'task_tokens'\. Did you mean 'task_token'"):
        TaskObjective(["a"], normalization="task_tokens")
    with pytest.raises(ConfigError, match="the tasks are"):
        TaskObjective(["a"], weights={"b": 1.0})
    with pytest.raises(ConfigError, match="task_ids: hold 1"):
        TaskObjective(["a"])(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.tensor([1]))
    for unknown in (1, -1):
        with pytest.raises(ConfigError, match=f"task_ids: hold {unknown}; the tasks are 0 to 0"):
            TaskObjective(["a"]).mean_losses(
                torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.tensor([unknown])
            )


def test_samples_of_one_row_need_their_positions() -> None:
    """Without them the whole row would be counted as its first task, in silence."""
    targets, task_ids, positions = torch.tensor([[3, -100, 5]]), torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 0]])
    objective = TaskObjective(["a", "b"])
    for wrong in ((), (torch.tensor([[0, 1, 2]]),)):
        with pytest.raises(ConfigError, match="task_ids: differ inside a sample"):
            objective.count((targets, task_ids, *wrong))
    assert objective.count((targets, task_ids, positions)).tokens.tolist() == [1, 1]
    padded = torch.tensor([[0, 0, -1]])
    assert objective.count((targets.masked_fill(padded < 0, -100), padded)).tokens.tolist() == [1, 0]


def test_rows_without_positions_add_nothing() -> None:
    empty = torch.empty(2, 0, dtype=torch.int64)
    assert TaskObjective(["a"])(empty.float(), empty, torch.zeros(2, dtype=torch.int64)) == 0


def test_a_shape_that_would_only_broadcast_is_an_error() -> None:
    objective = TaskObjective(["a", "b"])
    losses, targets, tasks = torch.ones(2, 5), torch.ones(2, 5, dtype=torch.int64), torch.tensor([0, 1])
    for wrong, match in (
        ((losses, targets, tasks[:1]), "task_ids: must"),
        ((losses, targets, tasks.float()), "task_ids: must"),
        ((losses, targets, [0, 1]), "task_ids: must"),
        ((losses.mean(), targets, tasks), "token_losses: must"),
        ((losses, targets.bool(), tasks), "targets: must"),
        ((losses.flatten(), targets.flatten(), tasks), "targets: must"),
    ):
        for function in (objective, objective.mean_losses):
            with pytest.raises(ConfigError, match=match):
                function(*wrong)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="counts: must"):
        objective(losses, targets, tasks, counts=TaskObjective(TASKS).count((targets, tasks)))


def test_a_loss_that_is_nan_where_nothing_is_trained_changes_nothing() -> None:
    losses = torch.tensor([[float("nan"), 2.0]], requires_grad=True)
    loss = TaskObjective(["a"])(losses, torch.tensor([[-100, 1]]), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 2 and losses.grad is not None and losses.grad.tolist() == [[0, 1]]


@pytest.mark.parametrize("tasks", ["ab", [], ["a", "a"], [1], 3])
def test_tasks_are_different_names(tasks: Any) -> None:
    with pytest.raises(ConfigError, match="tasks: "):
        TaskObjective(tasks)
    with pytest.raises(ConfigError, match="tasks: "):
        Balancer("coba", tasks, total_steps=10)


@pytest.mark.parametrize("weights", [{"a": float("nan"), "b": 1}, {"a": -1, "b": 1}, {"a": 0, "b": 0}, {}, [1, 2]])
def test_weights_are_one_number_a_task(weights: Any) -> None:
    with pytest.raises(ConfigError, match="weights: "):
        TaskObjective(["a", "b"], weights=weights)
    with pytest.raises(ConfigError, match="weights: "):
        Balancer("coba", ["a", "b"], total_steps=10, weights=weights)
