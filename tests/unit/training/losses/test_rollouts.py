"""The loss over sampled answers: its value and gradient are those of the written formula, however a step is split, and on two ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.kinds import GrpoKind
from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.data.batches.packing import assemble, pack_best_fit
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.training.backends.base import Backend, LocalBackend
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.losses.rollouts import RolloutTask, TokenLogps, Tokens, token_terms
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import Pairs, train_step, validate
from tests.ranks import Ask
from tests.unit.training.losses.test_objective import ROW, language_model, relative_gap
from tests.unit.training.losses.test_preference import flat_gradient, text

KINDS = [
    GrpoKind(name="grpo"),
    GrpoKind(name="grpo", epsilon=None),
    GrpoKind(name="grpo", scale_rewards=False, length="constant", max_tokens=20),
    GrpoKind(name="grpo", length="tokens", epsilon=0.1, epsilon_high=0.28, beta=0.3),
]
NAMES = ["grpo", "on_policy", "dr_grpo", "dapo_with_divergence"]
WEIGHTS = TaskWeights(np.asarray([1.0, 3.0]))
LENGTHS = [9, 12, 16, 8, 20, 6, 11, 7]
PROMPT, NUM_SFT = 2, 4
ANSWERED = np.asarray(LENGTHS) - PROMPT
REWARDS = np.asarray([1.0, 0.0, 0.5, 0.25, 0.0, 0.75, 1.0, 1.0])
GROUPS = REWARDS.reshape(2, 4)
GRADES = np.stack([REWARDS, np.repeat(GROUPS.mean(1), 4), np.repeat(GROUPS.std(1), 4)])
rng = np.random.default_rng(11)
SAMPLED, UNTRAINED = (-4.1 + rng.uniform(-0.5, 0.5, int(ANSWERED.sum())) for _ in range(2))
"""Near the random model's log-probabilities, about -4.1 a token, so that some tokens are clipped and some are not."""


def samples() -> list[TokenizedSample]:
    """Two groups of four answers of task 0, and four single texts of task 1."""
    random = np.random.default_rng(0)
    answers = [TokenizedSample(0, *text(length, PROMPT, random), "answer") for length in LENGTHS]
    return [*answers, *(TokenizedSample(1, *text(4 + 3 * number, 2, random), "single") for number in range(NUM_SFT))]


def step_data(micro_batches: int, layout: str = "packed") -> StepData:
    """All samples as one step of this many micro-batches; `packed` rows hold several samples."""
    of, order = samples(), [5, 8, 1, 2, 9, 3, 4, 10, 0, 6, 11, 7]
    lengths = np.asarray([len(of[index].input_ids) for index in order])
    plan = pack_best_fit(lengths, ROW)
    rows = [[order[i] for i in plan.row(r)] for r in range(len(plan))] if layout == "packed" else [[i] for i in order]
    batches = []
    for part in np.array_split(np.arange(len(rows)), min(micro_batches, len(rows))):
        packed = [assemble([of[i] for i in rows[row]], ROW) for row in part]
        names = ("input_ids", "targets", "position_ids", "task_ids")
        stacked = {n: torch.from_numpy(np.stack([getattr(row, n) for row in packed]).astype(np.int64)) for n in names}
        owners = [(of[i].task, i if of[i].task == 0 else i - len(LENGTHS)) for row in part for i in rows[row]]
        batches.append(PackedBatch(**stacked, samples=torch.tensor(owners)))
    tokens = [int(sum((s.targets != -100).sum() for s in of if s.task == task)) for task in (0, 1)]
    counts = StepCounts(np.asarray(tokens), np.asarray([8, NUM_SFT]), int(lengths.sum()), np.asarray([True, False]))
    return StepData(tuple(batches), counts)


def tasks_of(kind: GrpoKind) -> Pairs:
    logps = TokenLogps(None if kind.epsilon is None else SAMPLED, UNTRAINED if kind.beta else None)
    return Pairs([None, None], [RolloutTask(kind, GRADES, ANSWERED, logps), None])


def ours(kind: GrpoKind, data: StepData, dtype: torch.dtype = torch.float64) -> tuple[float, Tensor]:
    """Objective and flat gradient of a step with weights 1 and 3."""
    model = language_model()
    model.module.to(dtype)
    step = tasks_of(kind).losses(model, data.micro_batches, data.counts, LocalBackend(BackendConfig(device="cpu")))
    total = 0.0
    for batch in data.micro_batches:
        coefficients = token_coefficients(batch, data.counts, WEIGHTS, Objective())
        found = model.losses(batch, coefficients.to(dtype), step.of(batch))
        found.objective.backward()
        total += float(found.value)
    return total, flat_gradient(model)


def formula(kind: GrpoKind, logps: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """In numpy, token by token: the loss of the eight answers, its gradient with respect to the log-probabilities, and which are clipped."""
    advantages = GRADES[0] - GRADES[1]
    if kind.scale_rewards:
        advantages = advantages / GRADES[2]
    high = kind.epsilon_high or kind.epsilon
    loss, place = 0.0, 0
    slopes, clips = np.zeros(len(logps)), np.zeros(len(logps), bool)
    for advantage, length in zip(advantages, ANSWERED, strict=True):
        for t in range(place, place + length):
            unit = {"answer": 1 / length, "tokens": 8 / ANSWERED.sum(), "constant": 1 / kind.max_tokens}[
                kind.length
            ] / 8
            ratio = 1.0 if kind.epsilon is None else np.exp(logps[t] - SAMPLED[t])
            free = ratio * advantage
            if kind.epsilon is not None:
                bounded = min(max(ratio, 1 - kind.epsilon), 1 + (high or 0)) * advantage
                clips[t] = bounded < free
            loss -= unit * (bounded if clips[t] else free)
            slopes[t] -= 0.0 if clips[t] else unit * free
            if kind.beta:
                away = UNTRAINED[t] - logps[t]
                loss += unit * kind.beta * (np.exp(away) - away - 1)
                slopes[t] += unit * kind.beta * (1 - np.exp(away))
        place += length
    return loss, slopes, clips


def log_probabilities(model: Any) -> tuple[Tensor, Tensor]:
    """Of the answers' tokens, sample by sample, and of the single texts' tokens, each text in a forward pass alone."""
    found: list[list[Tensor]] = [[], []]
    for one in samples():
        ids = torch.from_numpy(one.input_ids)[None].long()
        logits = model.causal_lm(ids, segment_lengths=((len(one.input_ids),),)).logits[0]
        kept = torch.from_numpy(one.targets != -100)
        targets = torch.from_numpy(one.targets).long()[kept][:, None]
        found[one.task].append(logits.log_softmax(-1)[kept].gather(1, targets).squeeze(1))
    return torch.cat(found[0]), torch.cat(found[1])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_value_and_gradient_are_those_of_the_formula_in_numpy(kind: GrpoKind) -> None:
    model = language_model()
    model.module.double()
    answers, singles = log_probabilities(model)
    loss, slopes, clips = formula(kind, answers.detach().numpy())
    assert clips.any() == (kind.epsilon is not None) and not clips.all()
    ((answers * torch.from_numpy(slopes)).sum() / 4 - 3 * singles.mean() / 4).backward()
    value, gradient = ours(kind, step_data(1))
    assert value == pytest.approx((loss - 3 * float(singles.detach().mean())) / 4, rel=1e-6)
    assert relative_gap(gradient, flat_gradient(model)) < 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_step_does_not_depend_on_how_it_is_split(kind: GrpoKind, layout: str) -> None:
    for dtype in (torch.float64, torch.float32):
        value, whole = ours(kind, step_data(1), dtype)
        for micro_batches in (1, 2, 4, 7):
            other, split = ours(kind, step_data(micro_batches, layout), dtype)
            assert other == pytest.approx(value, rel=1e-6)
            assert relative_gap(split, whole) < 1e-6


def one_step(backend: Backend, kind: GrpoKind, data: StepData) -> dict[str, Any]:
    model = language_model()
    optimizer = MasterAdamW(model.module.named_parameters(), TrainConfig())
    if backend.group.world_size > 1:
        optimizer = backend.optimizer(model.module.named_parameters(), TrainConfig())  # type: ignore[assignment]
    before = validate(model, data.micro_batches, data.counts, backend, tasks_of(kind))
    result = train_step(model, data, WEIGHTS, Objective(), optimizer, 0.01, backend, pairs=tasks_of(kind))
    assert before.rollouts is not None and result.rollouts is not None
    np.testing.assert_allclose(result.rollouts, before.rollouts, rtol=1e-6)
    np.testing.assert_allclose(result.losses.mean, before.losses.mean, rtol=1e-6)
    return {
        "objective": result.objective,
        "grad_norm": result.grad_norm,
        "losses": result.losses.mean.tolist(),
        "rollouts": result.rollouts[:, 0].tolist(),
    }


def step_of_rank(backend: Backend, kind: GrpoKind) -> dict[str, Any]:
    data = step_data(4, "padded")
    return one_step(backend, kind, StepData(data.micro_batches[backend.group.rank :: 2], data.counts))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_two_ranks_take_the_step_of_one(ask: Ask, kind: GrpoKind) -> None:
    alone = one_step(LocalBackend(BackendConfig(device="cpu")), kind, step_data(1))
    for found in ask(step_of_rank, kind):
        for name, value in alone.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name


def test_a_balancer_sees_one_minus_the_reward_and_the_log_the_mean_reward() -> None:
    found = one_step(LocalBackend(BackendConfig(device="cpu")), KINDS[1], step_data(1))
    assert found["losses"][0] == pytest.approx(1 - REWARDS.mean(), rel=1e-6)
    assert found["rollouts"] == pytest.approx([REWARDS.sum(), 0, 0, 8, ANSWERED.sum()], rel=1e-6)


def test_the_loss_that_a_balancer_sees_falls_when_good_answers_gain() -> None:
    """Two tokens, of a good and of a bad answer: 1 - R falls by what the good one gains, up to the clip."""
    kind, zero = GrpoKind(name="grpo", epsilon=0.2), torch.zeros(2, dtype=torch.float64)
    centered = torch.tensor([0.5, -0.5], dtype=torch.float64)
    gained = torch.log(torch.tensor([1.1, 0.9], dtype=torch.float64))
    terms = token_terms(kind, Tokens(gained, zero, None, centered, centered))
    assert terms.gains.tolist() == pytest.approx([0.05, 0.05])
    far = token_terms(kind, Tokens(10 * gained, zero, None, centered, centered))
    assert far.gains.tolist() == pytest.approx([0.1, 0.1]) and far.clipped.tolist() == [1, 1]
    assert far.coefficients.tolist() == [0, 0]
