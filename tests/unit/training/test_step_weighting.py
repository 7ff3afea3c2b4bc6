"""How an absent task is weighted, what `corpus` guarantees, and what a step that is not finite changes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.data.batches.loader import StepCounts
from mftcoder.errors import ConfigError
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.forward.gradient_norms import gradient_norms
from mftcoder.training.losses.objective import Objective, task_scales
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import LossWindow, describe_nonfinite, train_step
from tests.unit.training.losses.test_focal import ours
from tests.unit.training.losses.test_objective import language_model, samples, step_data

WEIGHTS = TaskWeights(np.array([1.0, 3.0]))


def counts(*tokens: int) -> StepCounts:
    return StepCounts(np.array(tokens), np.minimum(tokens, 1), positions=sum(tokens))


def test_an_absent_tasks_weight_goes_to_the_others_or_stays_unused() -> None:
    present_only = counts(0, 10)
    np.testing.assert_allclose(task_scales(present_only, WEIGHTS, Objective()), [0, 1 / 10])
    np.testing.assert_allclose(task_scales(present_only, WEIGHTS, Objective(absent_task="keep")), [0, 0.75 / 10])
    both = counts(5, 10)
    np.testing.assert_allclose(
        task_scales(both, WEIGHTS, Objective()), task_scales(both, WEIGHTS, Objective(absent_task="keep"))
    )


def test_corpus_gives_a_rare_task_its_full_weight_over_an_epoch() -> None:
    """Task 0 has 40 tokens in one of ten steps, task 1 has 100 in each. Over the epoch each has exactly its weight."""
    epoch = [counts(40, 100)] + [counts(0, 100)] * 9
    expected_tokens = np.array([4.0, 100.0])
    corpus = Objective("corpus", expected_units=expected_tokens)
    totals = sum(step.tokens * task_scales(step, WEIGHTS, corpus) for step in epoch)
    np.testing.assert_allclose(totals / len(epoch), [0.25, 0.75])
    usual = sum(step.tokens * task_scales(step, WEIGHTS, Objective()) for step in epoch)
    assert usual[0] / len(epoch) == pytest.approx(0.025)  # a tenth of its weight


def test_corpus_coefficients_do_not_depend_on_the_step() -> None:
    corpus = Objective("corpus", expected_units=np.array([4.0, 100.0]))
    np.testing.assert_array_equal(
        task_scales(counts(3, 7), WEIGHTS, corpus), task_scales(counts(0, 9), WEIGHTS, corpus)
    )


def test_corpus_equals_task_token_where_every_step_is_alike() -> None:
    data = step_data(samples(), 2)
    value, gradient = ours(data, Objective("corpus", expected_units=data.counts.tokens.astype(float)))
    expected, reference = ours(data, Objective("task_token"))
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-8)


def test_a_step_that_is_not_finite_updates_nothing_and_its_sample_is_named() -> None:
    model, data = language_model(), step_data(samples(), 2)
    optimizer = MasterAdamW(model.module.named_parameters(), TrainConfig(learning_rate=0.1))
    backend = LocalBackend(BackendConfig(device="cpu"))
    window = LossWindow(2)
    window.add(train_step(model, data, WEIGHTS, Objective(), optimizer, 0.1, backend))
    before = [parameter.detach().clone() for parameter in model.module.parameters()]

    used = [set(sample.input_ids.tolist()) for sample in samples()]
    victim = next(i for i in range(len(used)) if used[i] - set().union(*(u for j, u in enumerate(used) if j != i)))
    token = next(iter(used[victim] - set().union(*(u for j, u in enumerate(used) if j != victim))))
    embedding = model.causal_lm.get_input_embeddings().weight
    kept = embedding[token].detach().clone()
    with torch.no_grad():
        embedding[token] = float("nan")
    marked = number_samples(data)
    result = train_step(model, marked, WEIGHTS, Objective(), optimizer, 0.1, backend)
    window.add(result)
    assert not result.finite
    message = describe_nonfinite(
        model, result, marked, ("easy", "hard"), lambda task, index: f"{task}.jsonl:{index}", backend
    )
    task = victim % 2
    assert message == f"the loss of task '{('easy', 'hard')[task]}' is nan, first in {task}.jsonl:{victim}"
    with torch.no_grad():
        embedding[token] = kept
    for parameter, old in zip(model.module.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    again = train_step(model, data, WEIGHTS, Objective(), optimizer, 0.1, backend)
    assert again.finite
    np.testing.assert_array_equal(window.peek().tokens, data.counts.tokens)  # the bad step is not in the window


def number_samples(data):  # type: ignore[no-untyped-def]
    """The same step with `samples` filled in: batches contain whole samples in packing order, recognized by their length."""
    from dataclasses import replace

    lengths = [len(sample.input_ids) for sample in samples()]
    batches = []
    for batch in data.micro_batches:
        starts = [*(batch.position_ids == 0).flatten().nonzero().flatten().tolist(), batch.position_ids.numel()]
        tasks = batch.task_ids.flatten()
        found = [
            (int(tasks[start]), lengths.index(stop - start)) for start, stop in pairwise(starts) if tasks[start] >= 0
        ]
        batches.append(replace(batch, samples=torch.tensor(found)))
    return replace(data, micro_batches=tuple(batches))


def test_gradient_norms_are_those_of_the_task_means_however_the_step_is_split() -> None:
    backend = LocalBackend(BackendConfig(device="cpu"))
    model = language_model()
    whole = gradient_norms(model, step_data(samples(), 1), backend, layer=-1)
    split = gradient_norms(model, step_data(samples(), 4, "padded"), backend, layer=-1)
    np.testing.assert_allclose(split, whole, rtol=1e-5)
    layer = list(model.causal_lm.model.layers[-1].parameters())
    for task in (0, 1):
        alone = Objective("token")
        data = step_data([sample for sample in samples() if sample.task == task], 1)
        losses = [model.losses(batch, coefficients(batch, data.counts, alone)) for batch in data.micro_batches]
        grads = torch.autograd.grad(losses[0].objective, layer)
        assert whole[task] == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def coefficients(batch, step_counts: StepCounts, objective: Objective) -> torch.Tensor:  # type: ignore[no-untyped-def]
    from mftcoder.training.losses.objective import token_coefficients

    return token_coefficients(batch, step_counts, WEIGHTS, objective)


def test_gradient_norms_need_a_layer_that_exists_and_is_trained() -> None:
    backend, model = LocalBackend(BackendConfig(device="cpu")), language_model()
    with pytest.raises(ConfigError, match=r"balancer\.layer: 7 is not one of this model's 2 decoder layers"):
        gradient_norms(model, step_data(samples(), 1), backend, layer=7)
    model.causal_lm.model.layers[1].requires_grad_(False)
    with pytest.raises(ConfigError, match="decoder layer 1 has no trained weights"):
        gradient_norms(model, step_data(samples(), 1), backend, layer=1)
