"""The message about a step that is not finite."""

from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.config.schema import BackendConfig
from mftcoder.data.batches.loader import StepCounts, StepData
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.backends.process_group import OneProcess
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.step import HostCopy, StepResult, describe_nonfinite
from tests.unit.training.losses.test_objective import LAYOUTS, language_model, samples, step_data
from tests.unit.training.test_step_weighting import number_samples

NAMES = ("easy", "hard")


def result(*loss_sums: float, tokens: tuple[int, int] = (10, 10), grad_norm: float = float("nan")) -> StepResult:
    """A step that ended with these sums."""
    numbers = torch.tensor([*loss_sums, sum(loss_sums), 20.0, grad_norm], dtype=torch.float64)
    return StepResult(HostCopy(numbers), StepCounts(np.array(tokens), np.array([1, 1]), 20), 0.1)


def step(micro_batches: int = 2, layout: str = "packed") -> StepData:
    return number_samples(step_data(samples(), micro_batches, layout))


def poisoned(*victims: int) -> LanguageModel:
    """A model whose loss of these samples is nan: a token that only one of them has is."""
    model, used = language_model(), [set(sample.input_ids.tolist()) for sample in samples()]
    embedding = model.causal_lm.get_input_embeddings().weight
    for victim in victims:
        others = set().union(*(tokens for number, tokens in enumerate(used) if number != victim))
        with torch.no_grad():
            embedding[min(used[victim] - others)] = float("nan")
    return model


def describe(model: LanguageModel, of: StepResult, data: StepData, backend: Any = None) -> str:
    backend = backend or LocalBackend(BackendConfig(device="cpu"))
    return describe_nonfinite(model, of, data, NAMES, lambda task, index: f"{task}.jsonl:{index}", backend)


NAN = float("nan")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("victim", "task"), [(6, 0), (5, 1), (2, 0)])
def test_the_sample_is_named_however_rows_are_laid_out(layout: str, victim: int, task: int) -> None:
    losses = (NAN, 1.0) if task == 0 else (1.0, NAN)
    message = describe(poisoned(victim), result(*losses), step(3, layout))
    assert message == f"the loss of task '{NAMES[task]}' is nan, first in {task}.jsonl:{victim}"


def test_with_finite_losses_the_gradient_is_named() -> None:
    message = describe(language_model(), result(1.0, 2.0, grad_norm=float("inf")), step())
    assert message == "the gradient norm is inf, with finite losses"


def test_further_tasks_are_named_and_the_sample_is_of_the_first() -> None:
    message = describe(poisoned(1, 6), result(NAN, float("inf")), step(layout="padded"))
    assert message == "the loss of task 'easy' (and of hard) is nan, first in 0.jsonl:6"


def test_a_task_without_tokens_is_not_named() -> None:
    """Its mean is nan because it has no tokens."""
    message = describe(poisoned(5), result(0.0, NAN, tokens=(0, 10)), step())
    assert message.startswith("the loss of task 'hard' is nan")


def test_the_message_says_if_each_sample_alone_is_finite() -> None:
    message = describe(language_model(), result(float("inf"), 1.0), step())
    assert message == "the loss of task 'easy' is inf, although the loss of each of its samples is finite"


def test_the_sample_may_be_another_ranks() -> None:
    class SecondOfThree(OneProcess):
        def all_gather(self, value: Any) -> list[Any]:
            assert value is None  # this rank's samples are all finite
            return [None, value, (0, 41)]

    backend = LocalBackend(BackendConfig(device="cpu"))
    backend.group = SecondOfThree(backend.config)
    message = describe(language_model(), result(NAN, 1.0), step(), backend)
    assert message == "the loss of task 'easy' is nan, first in 0.jsonl:41"


def test_the_search_has_no_dropout_and_leaves_gradients_and_training_mode_unchanged() -> None:
    model, training = poisoned(6), []
    model.module.train()
    model.decoder_layers()[0].register_forward_pre_hook(lambda layer, _: training.append(layer.training))
    describe(model, result(NAN, 1.0), step(2))
    assert training == [False, False]  # every micro-batch
    assert model.module.training
    assert all(parameter.grad is None for parameter in model.module.parameters())
