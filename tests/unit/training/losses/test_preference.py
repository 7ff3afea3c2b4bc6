"""The losses over pairs: their values and gradients are those of the written formulas, however a step is split, and on two ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.kinds import DpoKind, IpoKind, KtoKind, OrpoKind, PreferenceKind, SimpoKind
from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.data.batches.packing import assemble, pack_best_fit
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.training.backends.base import Backend, LocalBackend
from mftcoder.training.forward.gradient_norms import gradient_norms
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.losses.preference import PairTask
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import Pairs, train_step, validate
from tests.ranks import Ask
from tests.unit.training.losses.test_objective import ROW, VOCABULARY, language_model, relative_gap

KINDS: list[PreferenceKind] = [
    DpoKind(name="dpo", beta=0.3),
    DpoKind(name="dpo", beta=0.3, label_smoothing=0.2, rpo_alpha=0.7),
    IpoKind(name="ipo", beta=0.5),
    OrpoKind(name="orpo", beta=0.4),
    SimpoKind(name="simpo", beta=2.0, gamma=0.5, label_smoothing=0.1),
    KtoKind(name="kto", beta=0.6, desirable_weight=1.5, undesirable_weight=0.5),
]
NAMES = [f"{kind.name}-{number}" for number, kind in enumerate(KINDS)]
WEIGHTS = TaskWeights(np.asarray([1.0, 3.0]))
LENGTHS = [(5, 9), (3, 12), (16, 7), (8, 8), (4, 20), (11, 6), (2, 3)]
NUM_SFT = 4
rng = np.random.default_rng(7)
REFERENCE = -(np.asarray(LENGTHS) - 1) * (4.1 + rng.uniform([-0.5, 0.0], [0.5, 0.8], (len(LENGTHS), 2)))
"""Near the random model's log-probabilities, about -4.1 a token; below them in the second texts, so that KTO's z is above 0."""
DESIRABLE = np.array([True, False, True, True, False, False, True])


def text(length: int, prompt: int, random: np.random.Generator) -> tuple[Any, Any]:
    ids = random.integers(1, VOCABULARY, length + 1).astype(np.int32)
    targets = ids[1:].copy()
    targets[:prompt] = -100
    return ids[:-1], targets


def samples() -> list[TokenizedSample]:
    """Seven pairs of task 0, and four single texts of task 1."""
    random = np.random.default_rng(0)
    made = []
    for first, second in LENGTHS:
        (ids, targets), (other_ids, other_targets) = text(first, 1, random), text(second, 1, random)
        pair = np.concatenate([ids, other_ids]), np.concatenate([targets, other_targets])
        made.append(TokenizedSample(0, *pair, "pair", first))
    return [*made, *(TokenizedSample(1, *text(4 + 3 * number, 2, random), "single") for number in range(NUM_SFT))]


def step_data(micro_batches: int, layout: str = "packed") -> StepData:
    """All samples as one step of this many micro-batches; `packed` rows hold several samples."""
    of = samples()
    order = [0, 7, 1, 2, 8, 3, 4, 9, 5, 6, 10]  # pairs and single texts in turn
    lengths = np.asarray([len(of[index].input_ids) for index in order])
    plan = pack_best_fit(lengths, ROW)
    rows = [[order[i] for i in plan.row(r)] for r in range(len(plan))] if layout == "packed" else [[i] for i in order]
    batches = []
    for part in np.array_split(np.arange(len(rows)), min(micro_batches, len(rows))):
        packed = [assemble([of[i] for i in rows[row]], ROW) for row in part]
        stacked = {
            name: torch.from_numpy(np.stack([getattr(row, name) for row in packed]).astype(np.int64))
            for name in ("input_ids", "targets", "position_ids", "task_ids")
        }
        owners = [
            (of[i].task, i if of[i].task == 0 else i - len(LENGTHS))
            for row in part
            for i in rows[row]
            for _ in of[i].lengths
        ]
        batches.append(PackedBatch(**stacked, samples=torch.tensor(owners).reshape(-1, 2)))
    tokens = [0, 0]
    for sample in of:
        tokens[sample.task] += int((sample.targets[: sample.lengths[0]] != -100).sum())
    counts = StepCounts(
        np.asarray(tokens), np.asarray([len(LENGTHS), NUM_SFT]), int(lengths.sum()), np.asarray([True, False])
    )
    return StepData(tuple(batches), counts)


def pairs_of(kind: PreferenceKind) -> Pairs:
    return Pairs(
        [PairTask(kind, DESIRABLE if isinstance(kind, KtoKind) else np.ones(len(LENGTHS), bool), REFERENCE), None]
    )


def ours(kind: PreferenceKind, data: StepData, dtype: torch.dtype = torch.float64) -> tuple[float, Tensor]:
    """Objective and flat gradient of a step with weights 1 and 3."""
    model = language_model()
    model.module.to(dtype)
    pairs = pairs_of(kind).losses(model, data.micro_batches, data.counts, LocalBackend(BackendConfig(device="cpu")))
    total = 0.0
    for batch in data.micro_batches:
        coefficients = token_coefficients(batch, data.counts, WEIGHTS, Objective())
        found = model.losses(batch, coefficients.to(dtype), pairs.of(batch))
        found.objective.backward()
        total += float(found.value)
    return total, flat_gradient(model)


def flat_gradient(model: LanguageModel) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.module.parameters()])


def written(kind: PreferenceKind) -> tuple[float, Tensor]:
    """The formulas of the papers, over a forward pass of each text alone, differentiated by torch."""
    model = language_model()
    model.module.double()

    def logps(ids: Any, targets: Any) -> Tensor:
        shape = {"segment_lengths": ((len(ids),),)}
        logits = model.causal_lm(torch.from_numpy(ids)[None].long(), **shape).logits[0]
        kept = torch.from_numpy(targets != -100)
        return logits.log_softmax(-1)[kept].gather(1, torch.from_numpy(targets).long()[kept][:, None]).squeeze(1)

    of = samples()
    sides = [
        (
            logps(one.input_ids[: one.second], one.targets[: one.second]),
            logps(one.input_ids[one.second :], one.targets[one.second :]),
        )
        for one in of[: len(LENGTHS)]
    ]
    sums = torch.stack([torch.stack([side.sum() for side in pair]) for pair in sides])
    means = torch.stack([torch.stack([side.mean() for side in pair]) for pair in sides])
    counts = torch.tensor([[len(side) for side in pair] for pair in sides])
    gains = sums - torch.from_numpy(REFERENCE)
    nll = -torch.cat([pair[0] for pair in sides]).mean()
    difference = gains[:, 0] - gains[:, 1]
    if isinstance(kind, DpoKind):
        smoothing = kind.label_smoothing
        losses = (
            -F.logsigmoid(kind.beta * difference) * (1 - smoothing) - F.logsigmoid(-kind.beta * difference) * smoothing
        )
        loss = losses.mean() + kind.rpo_alpha * nll
    elif isinstance(kind, IpoKind):
        each = gains / counts
        loss = ((each[:, 0] - each[:, 1] - 1 / (2 * kind.beta)) ** 2).mean()
    elif isinstance(kind, OrpoKind):
        odds = torch.log(means.exp() / (1 - means.exp()))
        loss = nll - kind.beta * F.logsigmoid(odds[:, 0] - odds[:, 1]).mean()
    elif isinstance(kind, SimpoKind):
        margin = kind.beta * (means[:, 0] - means[:, 1]) - kind.gamma
        smoothing = kind.label_smoothing
        loss = (-F.logsigmoid(margin) * (1 - smoothing) - F.logsigmoid(-margin) * smoothing).mean()
    else:
        assert isinstance(kind, KtoKind)
        z = gains[:, 1].mean().clamp(min=0).detach()
        good = kind.desirable_weight * (1 - torch.sigmoid(kind.beta * (gains[:, 0] - z)))
        bad = kind.undesirable_weight * (1 - torch.sigmoid(kind.beta * (z - gains[:, 0])))
        loss = torch.where(torch.from_numpy(DESIRABLE), good, bad).mean()
    singles = torch.cat([logps(one.input_ids, one.targets) for one in of[len(LENGTHS) :]])
    objective = (loss - 3 * singles.mean()) / 4
    objective.backward()
    return objective.item(), flat_gradient(model)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_value_and_gradient_are_those_of_the_written_formula(kind: PreferenceKind) -> None:
    value, gradient = ours(kind, step_data(1))
    expected, reference = written(kind)
    assert value == pytest.approx(expected, rel=1e-6)
    assert relative_gap(gradient, reference) < 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_step_does_not_depend_on_how_it_is_split(kind: PreferenceKind, layout: str) -> None:
    for dtype, gap in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        value, whole = ours(kind, step_data(1), dtype)
        for micro_batches in (1, 2, 4, 7):
            other, split = ours(kind, step_data(micro_batches, layout), dtype)
            assert other == pytest.approx(value, rel=gap)
            assert relative_gap(split, whole) < gap


def test_kto_with_a_divergence_above_zero_is_compared_too() -> None:
    """Otherwise the clamp at zero would hide a wrong z."""
    model = language_model()
    data, backend = step_data(2), LocalBackend(BackendConfig(device="cpu"))
    pairs = pairs_of(KINDS[-1]).losses(model, data.micro_batches, data.counts, backend)
    assert pairs.divergence[0] > 0


def one_step(backend: Backend, kind: PreferenceKind, data: StepData) -> dict[str, Any]:
    model = language_model()
    optimizer = MasterAdamW(model.module.named_parameters(), TrainConfig())
    if backend.group.world_size > 1:
        optimizer = backend.optimizer(model.module.named_parameters(), TrainConfig())  # type: ignore[assignment]
    result = train_step(model, data, WEIGHTS, Objective(), optimizer, 0.01, backend, pairs=pairs_of(kind))
    held_out = validate(model, data.micro_batches, data.counts, backend, pairs_of(kind))
    assert held_out.rewards is not None and result.rewards is not None
    return {
        "objective": result.objective,
        "grad_norm": result.grad_norm,
        "losses": result.losses.mean.tolist(),
        "rewards": result.rewards[:, 0].tolist(),
        "validation": held_out.losses.mean.tolist() + held_out.rewards[:, 0].tolist(),
    }


def step_of_rank(backend: Backend, kind: PreferenceKind) -> dict[str, Any]:
    data = step_data(4, "padded")
    return one_step(backend, kind, StepData(data.micro_batches[backend.group.rank :: 2], data.counts))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_two_ranks_take_the_step_of_one(ask: Ask, kind: PreferenceKind) -> None:
    alone = one_step(LocalBackend(BackendConfig(device="cpu")), kind, step_data(1))
    for found in ask(step_of_rank, kind):
        for name, value in alone.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_losses_and_rewards_of_a_step_are_those_of_its_validation_before_it(kind: PreferenceKind) -> None:
    """Training and validation compute the same numbers, so that a balancer may compare them."""
    backend, data = LocalBackend(BackendConfig(device="cpu")), step_data(2)
    held_out = validate(language_model(), data.micro_batches, data.counts, backend, pairs_of(kind))
    model = language_model()
    optimizer = MasterAdamW(model.module.named_parameters(), TrainConfig())
    step = train_step(model, data, WEIGHTS, Objective(), optimizer, 0.01, backend, pairs=pairs_of(kind))
    np.testing.assert_allclose(step.losses.mean, held_out.losses.mean, rtol=1e-6)
    np.testing.assert_allclose(step.rewards, held_out.rewards, rtol=1e-6)
    assert step.objective == pytest.approx(float(held_out.losses.mean @ np.array([1, 3])) / 4, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[-1:], ids=["dpo", "kto"])
def test_gradnorm_sees_the_gradient_of_the_pairs_loss(kind: PreferenceKind) -> None:
    backend, model = LocalBackend(BackendConfig(device="cpu")), language_model()

    def norms(data: StepData) -> Sequence[float]:
        pairs = pairs_of(kind).losses(model, data.micro_batches, data.counts, backend)
        return gradient_norms(model, data, backend, layer=-1, pairs=pairs)  # type: ignore[return-value]

    whole = norms(step_data(1))
    np.testing.assert_allclose(norms(step_data(4, "padded")), whole, rtol=1e-4)
    data = step_data(1)
    pairs = pairs_of(kind).losses(model, data.micro_batches, data.counts, backend)
    (batch,) = data.micro_batches
    coefficients = token_coefficients(batch, data.counts, TaskWeights(np.asarray([1.0, 0.0])), Objective())
    objective = model.losses(batch, coefficients, pairs.of(batch)).objective
    layer = list(model.causal_lm.model.layers[-1].parameters())
    expected = torch.cat([grad.flatten() for grad in torch.autograd.grad(objective, layer)]).norm().item()
    assert whole[0] == pytest.approx(expected, rel=1e-4)


def test_a_pair_weighs_one_unit_in_every_normalization() -> None:
    data = step_data(1)
    for normalization in ("sample", "task_token", "task_sample"):
        coefficients = token_coefficients(data.micro_batches[0], data.counts, WEIGHTS, Objective(normalization))
        of_pairs = coefficients[(data.micro_batches[0].task_ids == 0) & (data.micro_batches[0].targets != -100)]
        assert len(of_pairs.unique()) == 1
        units = WEIGHTS.values @ data.counts.samples if normalization == "sample" else len(LENGTHS)
        assert float(of_pairs[0]) == pytest.approx(WEIGHTS.values[0] / units, rel=1e-6)
