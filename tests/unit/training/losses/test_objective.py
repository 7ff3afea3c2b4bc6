"""The objective of a step is its formula, and does not depend on how the step is split."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.balancing.base import TaskWeights
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.data.batches.packing import assemble, pack_best_fit
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.kernels.attention import register
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import NORMALIZATIONS, Objective, token_coefficients

register()
VOCABULARY, ROW = 61, 32
LAYOUTS = ("packed", "padded", "dynamic")


def language_model(num_tasks: int = 2) -> LanguageModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, attn_implementation="segments", use_cache=False,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config), attn_implementation="segments", num_tasks=num_tasks)


def samples(lengths: Sequence[int] = (5, 9, 20, 3, 14, 7, 31), untrained: int | None = None) -> list[TokenizedSample]:
    """Samples of tasks 0, 1, 0, 1, ...; the first half of each is prompt. `untrained` names one with nothing to train."""
    random = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        ids = random.integers(1, VOCABULARY, length + 1).astype(np.int32)
        targets = ids[1:].copy()
        targets[: length if number == untrained else length // 2] = -100
        made.append(TokenizedSample(number % 2, ids[:-1], targets, f"sample {number}"))
    return made


def step_data(
    of: Sequence[TokenizedSample], micro_batches: int, layout: str = "packed", num_tasks: int = 2
) -> StepData:
    """The samples as one step, split into micro-batches of rows."""
    lengths = np.asarray([len(sample.input_ids) for sample in of])
    plan = pack_best_fit(lengths, ROW)
    groups = [plan.row(r).tolist() for r in range(len(plan))] if layout == "packed" else [[i] for i in range(len(of))]
    cuts = [part.tolist() for part in np.array_split(np.arange(len(groups)), micro_batches)]
    batches = []
    for rows in (rows for rows in cuts if rows):
        width = max(lengths[groups[row][0]] for row in rows) if layout == "dynamic" else ROW
        packed = [assemble([of[i] for i in groups[row]], int(width)) for row in rows]
        stacked = {
            name: torch.from_numpy(np.stack([getattr(row, name) for row in packed]).astype(np.int64))
            for name in ("input_ids", "targets", "position_ids", "task_ids")
        }
        batches.append(PackedBatch(**stacked, samples=torch.zeros(0, 2, dtype=torch.int64)))
    tokens, with_targets = np.zeros(num_tasks, np.int64), np.zeros(num_tasks, np.int64)
    for sample in of:
        trained = int((sample.targets != -100).sum())
        tokens[sample.task] += trained
        with_targets[sample.task] += trained > 0
    return StepData(tuple(batches), StepCounts(tokens, with_targets, positions=int(lengths.sum())))


def gradient(data: StepData, normalization: str, weights: Sequence[float] = (1.0, 3.0)) -> tuple[float, torch.Tensor]:
    """Objective and flat gradient of the step."""
    model = language_model()
    objective = 0.0
    for batch in data.micro_batches:
        coefficients = token_coefficients(
            batch, data.counts, TaskWeights(np.asarray(weights)), Objective(normalization)
        )
        losses = model.losses(batch, coefficients)
        losses.objective.backward()
        objective += losses.objective.item()
    return objective, torch.cat([p.grad.flatten() for p in model.module.parameters()])


def relative_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_does_not_depend_on_how_the_step_is_split(normalization: str) -> None:
    _, whole = gradient(step_data(samples(), 1, "padded"), normalization)
    for micro_batches in (2, 4, 7):
        _, split = gradient(step_data(samples(), micro_batches, "padded"), normalization)
        assert relative_gap(split, whole) < 1e-6


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_does_not_depend_on_the_layout(normalization: str) -> None:
    objective, whole = gradient(step_data(samples(), 1, "packed"), normalization)
    for layout in LAYOUTS:
        for micro_batches in (1, 2, 4):
            other, split = gradient(step_data(samples(), micro_batches, layout), normalization)
            assert relative_gap(split, whole) < 1e-6
            assert other == pytest.approx(objective, rel=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_task_weights_count_even_at_micro_batch_size_one(normalization: str) -> None:
    _, even = gradient(step_data(samples(), 7, "padded"), normalization, (1.0, 1.0))
    _, tilted = gradient(step_data(samples(), 7, "padded"), normalization, (100.0, 1.0))
    assert relative_gap(tilted, even) > 0.1


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_with_nothing_trained_changes_nothing_and_gives_no_nan(normalization: str, layout: str) -> None:
    with_it, without = samples(untrained=2), [s for i, s in enumerate(samples()) if i != 2]
    objective, gradient_with = gradient(step_data(with_it, 7, layout), normalization)
    assert np.isfinite(objective) and torch.isfinite(gradient_with).all()
    assert relative_gap(gradient_with, gradient(step_data(without, 3, layout), normalization)[1]) < 1e-6


def test_objective_equals_the_written_formulas() -> None:
    """Each sample's mean loss from a forward of its own; the four normalisations spelt out, with weights 1 and 3."""
    model, of = language_model(), samples()
    tasks = np.asarray([s.task for s in of])
    counts = np.asarray([(s.targets != -100).sum() for s in of])
    means = np.asarray(
        [
            torch.nn.functional.cross_entropy(
                model.causal_lm(
                    torch.from_numpy(s.input_ids)[None].long(), segment_lengths=((len(s.input_ids),),)
                ).logits[0],
                torch.from_numpy(s.targets).long(),
            ).item()
            for s in of
        ]
    )
    token = lambda mask: (means * counts)[mask].sum() / counts[mask].sum()  # noqa: E731
    weights = np.where(tasks == 0, 1, 3)
    expected = {
        "token": (weights * means * counts).sum() / (weights * counts).sum(),
        "sample": (weights * means).sum() / weights.sum(),
        "task_token": (1 * token(tasks == 0) + 3 * token(tasks == 1)) / 4,
        "task_sample": (1 * means[tasks == 0].mean() + 3 * means[tasks == 1].mean()) / 4,
    }
    for normalization, value in expected.items():
        assert gradient(step_data(of, 3), normalization)[0] == pytest.approx(value, rel=1e-5)
    published = {"token": (means * counts).sum() / counts.sum(), "sample": means.mean()}
    for normalization, value in published.items():
        assert gradient(step_data(of, 3), normalization, (0.5, 0.5))[0] == pytest.approx(value, rel=1e-5)


def test_an_absent_task_leaves_its_weight_to_the_others() -> None:
    of = [s for s in samples() if s.task == 1]
    few, _ = gradient(step_data(of, 2), "task_token", (5.0, 1.0))
    alone, _ = gradient(step_data(of, 2), "token")
    assert few == pytest.approx(alone, rel=1e-6)


def test_losses_per_task_add_up_to_the_token_mean() -> None:
    data, model = step_data(samples(), 1), language_model()
    (batch,) = data.micro_batches
    losses = model.losses(batch, token_coefficients(batch, data.counts, TaskWeights(np.ones(2)), Objective("token")))
    assert losses.loss_sum.sum().item() / data.counts.tokens.sum() == pytest.approx(losses.objective.item(), rel=1e-6)
