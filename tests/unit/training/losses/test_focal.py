"""FL1 and FL2: their gradients are those of autograd on the formula, for every normalization and every split of the step."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.data.batches.loader import StepData
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.losses.objective import NORMALIZATIONS, Objective
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import train_step
from tests.unit.training.losses.test_objective import language_model, relative_gap, samples, step_data

WEIGHTS = np.array([1.0, 3.0])
GAMMA = 1.5


def written(
    of: Sequence[TokenizedSample], normalization: str, focal: str, *, detach: bool
) -> tuple[float, torch.Tensor]:
    """Sum over groups of (1 - P)^gamma Q from whole logits, and its gradient by autograd."""
    model = language_model()
    tasks = torch.tensor([sample.task for sample in of])
    losses = [sample_losses(model.causal_lm, sample) for sample in of]
    if normalization in ("token", "task_token"):
        units = [sum(len(loss) for loss, t in zip(losses, tasks, strict=True) if t == task) for task in (0, 1)]
    else:
        units = [int((tasks == task).sum()) for task in (0, 1)]
    if normalization.startswith("task"):
        scales = [WEIGHTS[task] / WEIGHTS.sum() / units[task] for task in (0, 1)]
    else:
        scales = [WEIGHTS[task] / sum(WEIGHTS * units) for task in (0, 1)]
    coefficients = [
        torch.full((len(loss),), float(scales[task]) / (len(loss) if normalization.endswith("sample") else 1))
        for loss, task in zip(losses, tasks, strict=True)
    ]
    groups = (
        [[i] for i in range(len(of))]
        if focal == "sample"
        else [[i for i in range(len(of)) if tasks[i] == t] for t in (0, 1)]
    )
    total = torch.zeros(())
    for group in groups:
        loss = torch.cat([losses[i] for i in group])
        weight = torch.cat([coefficients[i] for i in group])
        probability = (weight * torch.exp(-loss)).sum() / weight.sum()
        factor = (1 - (probability.detach() if detach else probability)) ** GAMMA
        total = total + factor * (weight * loss).sum()
    total.backward()
    return total.item(), torch.cat([p.grad.flatten() for p in model.module.parameters()])


def sample_losses(causal_lm: torch.nn.Module, sample: TokenizedSample) -> torch.Tensor:
    ids = torch.from_numpy(sample.input_ids)[None].long()
    logits = causal_lm(ids, segment_lengths=((len(sample.input_ids),),)).logits[0]
    kept = torch.from_numpy(sample.targets != -100)
    return torch.nn.functional.cross_entropy(
        logits[kept], torch.from_numpy(sample.targets).long()[kept], reduction="none"
    )


class Recorder(MasterAdamW):
    """Keeps the gradients and does not update."""

    def step(self, rate: float, loss_sums: torch.Tensor | None = None) -> torch.Tensor:
        self.flat = torch.cat([parameter.grad.flatten() for parameter in self.parameters])
        return self.flat.norm()


def ours(data: StepData, objective: Objective) -> tuple[float, torch.Tensor]:
    model = language_model()
    optimizer = Recorder(model.module.named_parameters(), TrainConfig())
    backend = LocalBackend(BackendConfig(device="cpu"))
    result = train_step(model, data, TaskWeights(WEIGHTS), objective, optimizer, 0.0, backend)
    return result.objective, optimizer.flat


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "through"])
@pytest.mark.parametrize("focal", ["sample", "task"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_focal_gradient_is_that_of_the_written_formula(normalization: str, focal: str, detach: bool) -> None:
    objective = Objective(normalization, focal=focal, focal_gamma=GAMMA, focal_detach=detach)
    value, gradient = ours(step_data(samples(), 2), objective)
    expected, reference = written(samples(), normalization, focal, detach=detach)
    assert value == pytest.approx(expected, rel=1e-5)
    assert relative_gap(gradient, reference) < 2e-6


@pytest.mark.parametrize("focal", ["sample", "task"])
def test_focal_gradient_does_not_depend_on_how_the_step_is_split(focal: str) -> None:
    objective = Objective("task_sample", focal=focal, focal_gamma=GAMMA, focal_detach=False)
    value, whole = ours(step_data(samples(), 1, "padded"), objective)
    for micro_batches, layout in ((2, "packed"), (4, "dynamic"), (7, "padded")):
        other, split = ours(step_data(samples(), micro_batches, layout), objective)
        assert relative_gap(split, whole) < 1e-6
        assert other == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("focal", ["sample", "task"])
def test_gamma_zero_is_without_focal_weight(focal: str) -> None:
    data = step_data(samples(), 2)
    plain, focal_zero = ours(data, Objective()), ours(data, Objective(focal=focal, focal_gamma=0.0))
    assert focal_zero[0] == pytest.approx(plain[0], rel=1e-6)
    assert relative_gap(focal_zero[1], plain[1]) < 1e-6


def test_an_untrained_sample_gives_no_nan() -> None:
    for focal in ("sample", "task"):
        value, gradient = ours(step_data(samples(untrained=2), 3), Objective(focal=focal, focal_detach=False))
        assert np.isfinite(value) and torch.isfinite(gradient).all()
