"""The reference of a run's pairs: what the untrained model gives, computed once, found again, and never taken from a trained model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.app.training.train import train
from mftcoder.cache import cache_root
from mftcoder.config.load import load_config, parse_config
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import CheckpointError
from mftcoder.training.reference import read_arrays, reference_path

Run = Callable[..., Path]
Said = Callable[[], str]
COMPUTING = "computing the log-probabilities of the reference"


@pytest.fixture
def run(tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Callable[..., Path]) -> Run:
    """`run(name, max_steps=1, adapter="full")`: a real run on pairs; the run folder."""
    records = [{"prompt": f"{n} + 1", "chosen": str(n + 1), "rejected": f"it is {n}"} for n in range(12)]
    path = make_jsonl("pairs.jsonl", records)
    (tmp_path / "base").mkdir()
    for file in tiny_llama_dir.iterdir():
        shutil.copy(file, tmp_path / "base" / file.name)

    def start(name: str, *, adapter: Any = "full", max_steps: int = 1, kind: str = "dpo") -> Path:
        raw = {
            "model": {"model_name_or_path": str(tmp_path / "base"), "dtype": "float32"},
            "adapter": adapter,
            "tasks": {"pairs": {"path": str(path), "kind": kind}},
            "data": {"max_length": 64, "val_size": 0.25, "num_proc": 1},
            "train": {
                "max_steps": max_steps, "save_steps": 1, "report_to": [], "learning_rate": 0.01, "lr_scheduler_type": "constant",
                "per_device_train_batch_size": 2,
            },
            "backend": {"device": "cpu"},
            "output_dir": str(tmp_path / name),
        }  # fmt: skip
        train(parse_config(raw, origin="test"), allow_changes=True)
        return tmp_path / name

    return start


def reference_files() -> list[Path]:
    return sorted((cache_root() / "reference").glob("*.npz"))


def test_it_is_what_the_untrained_model_gives_each_text(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = run("full")
    (file,) = reference_files()
    reference = read_arrays(file)
    assert reference is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    store = prepare(load_config(folder / "config.yaml"))
    for split, samples in (("train", store.train(0)), ("validation", store.validation(0))):
        assert reference[f"{split}-0"].shape == (len(samples), 2)
        for index in range(len(samples)):
            sample = samples.sample(index)
            for side, part in enumerate((slice(None, sample.second), slice(sample.second, None))):
                ids, targets = (torch.from_numpy(x[part]).long() for x in (sample.input_ids, sample.targets))
                loss = torch.nn.functional.cross_entropy(model(ids[None]).logits[0], targets, reduction="sum")
                assert reference[f"{split}-0"][index, side] == pytest.approx(-loss.item(), rel=1e-5)


def test_another_run_and_a_resumed_one_read_it(run: Run, said: Said) -> None:
    run("first")
    assert COMPUTING in said()
    run("second", adapter={"type": "lora", "lora_rank": 2})
    run("first", max_steps=2)
    assert COMPUTING not in said() and len(reference_files()) == 1


def test_lora_weights_are_turned_off_so_that_a_trained_run_gives_the_same(run: Run, said: Said) -> None:
    lora = {"type": "lora", "lora_rank": 2}
    run("run", adapter=lora)
    (file,) = reference_files()
    before = read_arrays(file)
    file.unlink()
    said()
    run("run", adapter=lora, max_steps=2)
    after = read_arrays(file)
    assert COMPUTING in said() and before is not None and after is not None
    np.testing.assert_allclose(after["train-0"], before["train-0"], rtol=1e-6)


def test_a_model_trained_in_full_cannot_be_its_own_reference(run: Run) -> None:
    run("run")
    (file,) = reference_files()
    file.unlink()
    with pytest.raises(CheckpointError, match="reference are gone, and its weights have been trained since"):
        run("run", max_steps=2)


def test_another_model_has_another_reference(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run("one")
    weights = tmp_path / "base" / "model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    run("two")
    assert len(reference_files()) == 2


def test_a_loss_without_a_reference_computes_none(run: Run, said: Said) -> None:
    run("run", kind="simpo")
    assert COMPUTING not in said() and not reference_files()


def test_layers_that_are_left_out_of_quantization_make_another_reference(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def path(**model: Any) -> Path:
        fields = {"model_name_or_path": str(tiny_llama_dir), "quantization": "fp8", **model}
        (tmp_path / "data.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
        tasks = {"pairs": {"path": str(tmp_path / "data.jsonl"), "kind": "dpo"}}
        config = parse_config({"model": fields, "tasks": tasks, "output_dir": str(tmp_path / "run")}, origin="test")
        return reference_path(config, prepare(config), [])

    assert path() == path() != path(modules_to_not_convert=["mlp"])
