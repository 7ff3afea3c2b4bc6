"""The log-probabilities that sampled answers are compared with: those of the model that began the data, also after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mftcoder.app.training.train import train
from mftcoder.config.load import parse_config
from mftcoder.data.prepared.store import Store, prepare
from mftcoder.errors import CheckpointError

Run = Callable[..., Store]


@pytest.fixture
def run(tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Callable[..., Path]) -> Run:
    """`run(3, max_steps=1)`: a real run on groups about this number, each step 8 rows; the store."""

    def start(number: int, max_steps: int) -> Store:
        records: list[dict[str, Any]] = [
            {"prompt": f"{n} + {number}", "completions": [str(n + number), "no"], "rewards": [1, 0]} for n in range(8)
        ]
        raw = {
            "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
            "adapter": {"lora_rank": 4},
            "tasks": {"t": {"files": str(make_jsonl("t.jsonl", records)), "kind": {"name": "grpo", "beta": 0.1}}},
            "data": {"max_length": 64, "val_size": 0.0, "num_proc": 1},
            "train": {
                "max_steps": max_steps, "save_steps": 1, "report_to": [], "learning_rate": 0.01, "lr_scheduler_type": "constant",
                "per_device_train_batch_size": 8, "eval_strategy": "no",
            },
            "backend": {"device": "cpu"},
            "output_dir": str(tmp_path / "run"),
        }  # fmt: skip
        config = parse_config(raw, origin="test")
        train(config, allow_changes=True)
        return prepare(config)

    return start


def arrays(tmp_path: Path, store: Store) -> dict[str, Any]:
    with np.load(tmp_path / "run" / "sampled" / f"{store.fingerprint}.npz") as found:
        return dict(found)


def untrained(tiny_llama_dir: Path, store: Store) -> list[float]:
    """Log-probabilities of the trained tokens, sample by sample, each text alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype="float32")
    found = []
    samples = store.train(0)
    for sample in map(samples.sample, range(len(samples))):
        with torch.no_grad():
            logps = model(torch.from_numpy(sample.input_ids)[None].long()).logits[0].log_softmax(-1)
        found += [float(logps[t, target]) for t, target in enumerate(sample.targets) if target >= 0]
    return found


def test_new_data_are_compared_with_the_model_that_begins_them(run: Run, tmp_path: Path, tiny_llama_dir: Path) -> None:
    first = run(3, max_steps=1)
    made, expected = arrays(tmp_path, first), untrained(tiny_llama_dir, first)
    np.testing.assert_allclose(made["sampled-train-0"], expected, atol=1e-5)
    np.testing.assert_allclose(made["untrained-train-0"], expected, atol=1e-5)
    second = run(4, max_steps=2)
    made, expected = arrays(tmp_path, second), untrained(tiny_llama_dir, second)
    np.testing.assert_allclose(made["untrained-train-0"], expected, atol=1e-5)
    assert np.abs(made["sampled-train-0"] - expected).max() > 1e-3


def test_a_run_within_its_data_never_computes_them_again(run: Run, tmp_path: Path) -> None:
    store = run(3, max_steps=1)
    before = arrays(tmp_path, store)
    run(3, max_steps=2)
    after = arrays(tmp_path, store)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    (tmp_path / "run" / "sampled" / f"{store.fingerprint}.npz").unlink()
    with pytest.raises(CheckpointError, match="log-probabilities of the sampled answers are gone"):
        run(3, max_steps=3)
