"""The loss of marked tokens equals that of transformers, whatever shares a batch with them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mftcoder.config.schema import ModelConfig
from mftcoder.generation.answer_loss import AnswerLoss


def sample(seed: int, length: int, counted: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(5, 300, length).astype(np.int32)
    return ids, np.arange(length) >= length - counted


def test_losses_are_those_of_transformers_one_sample_at_a_time(tiny_llama_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    samples = [sample(0, 40, 10), sample(1, 7, 6), sample(2, 300, 299), sample(3, 12, 1)]
    expected = []
    for ids, counted in samples:
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(counted)[None], tokens, -100)
        expected.append(float(model(input_ids=tokens, labels=labels).loss.detach()))
    scorer = AnswerLoss(ModelConfig(model_name_or_path=str(tiny_llama_dir), dtype="float32"))
    for batch_positions in (1, 100, 10_000):
        assert scorer.mean_losses(samples, batch_positions) == pytest.approx(expected, rel=1e-4)
    assert scorer.mean_losses([], 100) == []
