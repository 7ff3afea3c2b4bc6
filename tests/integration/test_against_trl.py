"""The losses of preference tasks equal those of TRL's trainers on the same batch."""

import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.kinds import DpoKind, IpoKind, KtoKind, OrpoKind, PreferenceKind, SimpoKind
from mftcoder.config.schema import BackendConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts
from mftcoder.data.batches.packing import assemble
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.kernels.attention import register
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.losses.preference import PairTask
from mftcoder.training.step import Pairs

pytestmark = [
    pytest.mark.slow(reason="TRL takes about 15 seconds to import on two cores"),
    pytest.mark.skipif(find_spec("trl") is None, reason="the extra `bench` brings trl"),
    pytest.mark.filterwarnings("ignore"),  # TRL warns about names of its own that will change
]
LENGTHS = [(4, 7), (9, 3), (6, 6), (12, 5)]  # answers; every prompt has three tokens
DESIRABLE = np.array([True, False, False, True])
PROMPT = 3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """The tiny model and its tokenizer, moved away from its first weights, so that it differs from the reference."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(folder)
    return folder


def texts() -> list[list[np.ndarray]]:
    """Token ids of both texts of each pair."""
    random = np.random.default_rng(3)
    found = []
    for first, second in LENGTHS:
        prompt = random.integers(5, 900, PROMPT)
        found.append(
            [np.concatenate([prompt, random.integers(5, 900, size)]).astype(np.int32) for size in (first, second)]
        )
    return found


def padded(rows: list[np.ndarray]) -> dict[str, Tensor]:
    """As TRL's collators make it: ids, attention mask and completion mask, padded at the end."""
    width = max(map(len, rows))
    ids, attention, completion = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row).long()
        attention[number, : len(row)] = 1
        completion[number, PROMPT : len(row)] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logps(model: Any, rows: list[np.ndarray]) -> Tensor:
    """Summed log-probabilities of the answers [S]."""
    batch = padded(rows)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
    picked = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    return (picked * batch["completion_mask"][:, 1:]).sum(1)


def ours(kind: PreferenceKind, trained: Path, reference: Path) -> tuple[float, Tensor]:
    """Objective and gradient of the pairs in packed rows."""
    register()
    module = load(trained)
    model = LanguageModel(module, attn_implementation="segments", num_tasks=1)
    model.set_attention("segments")
    samples = []
    for first, second in texts():
        ids, targets = (
            np.concatenate([first[:-1], second[:-1]]),
            np.concatenate([first[1:], second[1:]]).astype(np.int32),
        )
        for start in (0, len(first) - 1):
            targets[start : start + PROMPT - 1] = -100
        samples.append(TokenizedSample(0, ids, targets, "pair", len(first) - 1))
    rows = [assemble(samples[:2], 64), assemble(samples[2:], 64)]
    stacked = {
        name: torch.from_numpy(np.stack([getattr(row, name) for row in rows]).astype(np.int64))
        for name in ("input_ids", "targets", "position_ids", "task_ids")
    }
    batch = PackedBatch(**stacked, samples=torch.tensor([(0, n) for n in range(len(samples)) for _ in range(2)]))
    tokens = sum(len(first) - PROMPT for first, _ in texts())
    counts = StepCounts(np.array([tokens]), np.array([len(samples)]), 0, np.array([True]))
    base = logps(load(reference), [side for pair in texts() for side in pair]).reshape(-1, 2).numpy()
    labels = DESIRABLE if isinstance(kind, KtoKind) else np.ones(len(samples), bool)
    backend = LocalBackend(BackendConfig(device="cpu"))
    pairs = Pairs([PairTask(kind, labels, base)]).losses(model, [batch], counts, backend)
    coefficients = token_coefficients(batch, counts, TaskWeights(np.ones(1)), Objective())
    found = model.losses(batch, coefficients, pairs.of(batch))
    found.objective.backward()
    return float(found.value), gradient_of(module)


def gradient_of(module: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def check(kind: PreferenceKind, theirs: Tensor, module: Any, trained: Path, reference: Path) -> None:
    theirs.backward()
    value, gradient = ours(kind, trained, reference)
    assert value == pytest.approx(theirs.item(), abs=1e-5)
    expected = gradient_of(module)
    assert ((gradient - expected).norm() / expected.norm()).item() < 1e-4


def dataset(**columns: Any) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": "a b", **columns} for _ in range(4)])


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    folder = str(tmp_path_factory.mktemp("trl"))
    return {"output_dir": folder, "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DpoKind(name="dpo", beta=0.3), {"beta": 0.3, "loss_types": ["sigmoid"], "loss_weights": [1.0]}),
        (
            DpoKind(name="dpo", beta=0.3, rpo_alpha=0.5),
            {"beta": 0.3, "loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        ),
        (IpoKind(name="ipo", beta=0.2), {"beta": 0.2, "loss_types": ["ipo"], "loss_weights": [1.0]}),
    ],
    ids=["dpo", "rpo", "ipo"],
)
def test_dpo_rpo_and_ipo(
    kind: PreferenceKind, settings: dict[str, Any], common: dict[str, Any], tiny_llama_dir: Path, model_dir: Path
) -> None:
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=load(model_dir),
        ref_model=load(tiny_llama_dir),
        args=DPOConfig(**common),
        train_dataset=dataset(chosen="c", rejected="d"),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama_dir),
    )
    for name, value in settings.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    batch = padded([pair[side] for side in (0, 1) for pair in texts()])
    check(kind, trainer._compute_loss(trainer.model, batch, False), trainer.model, model_dir, tiny_llama_dir)


def test_kto(common: dict[str, Any], tiny_llama_dir: Path, model_dir: Path) -> None:
    from transformers import AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    trainer = KTOTrainer(
        model=load(model_dir),
        ref_model=load(tiny_llama_dir),
        args=KTOConfig(**common, beta=0.4, desirable_weight=1.5, undesirable_weight=0.5, per_device_train_batch_size=4),
        train_dataset=dataset(completion="c", label=True),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama_dir),
    )
    other = {f"KL_{name}": values for name, values in padded([pair[1] for pair in texts()]).items()}
    batch = {**padded([pair[0] for pair in texts()]), **other, "label": torch.from_numpy(DESIRABLE)}
    kind = KtoKind(name="kto", beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)
    check(kind, trainer._compute_loss(trainer.model, batch, False), trainer.model, model_dir, tiny_llama_dir)


def sequence_means(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-probabilities of the chosen and the rejected answers [P] as TRL computes them, and the chosen answers' token mean."""
    from trl.experimental.orpo import ORPOTrainer

    batch = padded([pair[side] for side in (0, 1) for pair in texts()])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logits = module(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    means = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    chosen = len(LENGTHS)
    nll = torch.nn.functional.cross_entropy(logits[:chosen, :-1].flatten(0, 1), labels[:chosen, 1:].flatten())
    return means[:chosen], means[chosen:], nll


def test_orpo(tiny_llama_dir: Path, model_dir: Path) -> None:
    """TRL also counts the prompt in the chosen text's loss; here, as in the paper, only the answer is counted."""
    from trl.experimental.orpo import ORPOTrainer

    module = load(model_dir)
    chosen, rejected, nll = sequence_means(module)
    trainer: Any = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    losses = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    check(OrpoKind(name="orpo", beta=0.4), nll - losses.mean(), module, model_dir, tiny_llama_dir)


def test_simpo(tiny_llama_dir: Path, model_dir: Path) -> None:
    from trl.experimental.cpo import CPOTrainer

    module = load(model_dir)
    chosen, rejected, _ = sequence_means(module)
    trainer: Any = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    losses = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
    kind = SimpoKind(name="simpo", beta=2.0, gamma=0.5, label_smoothing=0.1)
    check(kind, losses.mean(), module, model_dir, tiny_llama_dir)
