"""The gradient norms that GradNorm compares, checked by hand with autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import BackendConfig
from mftcoder.data.batches.loader import StepData
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.backends.process_group import OneProcess
from mftcoder.training.forward.gradient_norms import gradient_norms, layer_parameters
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective, token_coefficients
from tests.unit.training.losses.test_objective import language_model, samples, step_data


def local() -> LocalBackend:
    return LocalBackend(BackendConfig(device="cpu"))


def of_task(task: int) -> StepData:
    return step_data([sample for sample in samples() if sample.task == task], 1)


def by_hand(model: LanguageModel, task: int, parameters: list[nn.Parameter]) -> float:
    """Norm of the gradient of the task's mean token loss, from the loss that training itself minimizes."""
    data = of_task(task)
    (batch,) = data.micro_batches
    coefficients = token_coefficients(batch, data.counts, TaskWeights(np.ones(2)), Objective("token"))
    grads = torch.autograd.grad(model.losses(batch, coefficients).objective, parameters)
    return torch.cat([grad.flatten() for grad in grads]).norm().item()


@pytest.mark.parametrize(("layer", "place"), [(0, 0), (1, 1), (-1, 1), (-2, 0)])
def test_each_layer_has_its_own_norm_and_may_be_counted_from_the_end(layer: int, place: int) -> None:
    model = language_model()
    found = gradient_norms(model, step_data(samples(), 2), local(), layer=layer)
    parameters = list(model.causal_lm.model.layers[place].parameters())
    assert found == pytest.approx([by_hand(model, task, parameters) for task in (0, 1)], rel=1e-5)


def test_a_task_without_tokens_has_no_norm_and_the_other_keeps_its_own() -> None:
    model = language_model()
    absent = gradient_norms(model, of_task(0), local(), layer=-1)
    whole = gradient_norms(model, step_data(samples(), 1), local(), layer=-1)
    assert np.isnan(absent[1]) and absent[0] == pytest.approx(whole[0], rel=1e-5)


def test_only_weights_that_train_count() -> None:
    model = language_model()
    layer = model.causal_lm.model.layers[-1]
    layer.requires_grad_(False)
    layer.mlp.up_proj.requires_grad_(True)
    assert layer_parameters(model, -1) == [layer.mlp.up_proj.weight]
    found = gradient_norms(model, step_data(samples(), 1), local(), layer=-1)
    assert found[0] == pytest.approx(by_hand(model, 0, [layer.mlp.up_proj.weight]), rel=1e-5)


def test_a_weight_that_the_loss_does_not_reach_counts_as_zero() -> None:
    """An expert that no token was sent to, say."""
    model = language_model()
    before = gradient_norms(model, step_data(samples(), 1), local(), layer=-1)
    model.causal_lm.model.layers[-1].unused = nn.Linear(3, 3)
    np.testing.assert_array_equal(gradient_norms(model, step_data(samples(), 1), local(), layer=-1), before)


def test_gradients_are_summed_over_the_ranks_before_their_norm_is_taken() -> None:
    """Gradients that cancel between two ranks have norm zero, however large each is."""

    class Cancelling(OneProcess):
        def sum_over_ranks(self, values: Tensor) -> Tensor:
            assert values.shape[0] == 2 and values.ndim == 2  # gradients, not norms
            return values - values

    backend = local()
    backend.group = Cancelling(backend.config)
    assert gradient_norms(language_model(), step_data(samples(), 1), backend, layer=-1).tolist() == [0, 0]


def test_gradients_of_the_step_are_not_changed() -> None:
    model = language_model()
    kept = [torch.full_like(parameter, 2.0) for parameter in model.module.parameters()]
    for parameter, gradient in zip(model.module.parameters(), kept, strict=True):
        parameter.grad = gradient.clone()
    gradient_norms(model, step_data(samples(), 1), local(), layer=0)
    for parameter, gradient in zip(model.module.parameters(), kept, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
