"""`mft train` on the device: it resumes to the last bit, ranks take one device's steps, and a full memory has an answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.app.training.train import train
from mftcoder.config.load import load_config
from mftcoder.errors import TrainingError
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.session import device_memory_errors
from tests.integration.test_train_cli import metrics, mft, run_with_kills, write_config, write_tasks


def config_of(folder: Path, model: Path, data: Path, device: torch.device, **overrides: Any) -> Path:
    folder.mkdir()
    return write_config(folder, model, data, backend__device=device.type, **overrides)


@pytest.mark.slow(reason="four runs")
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, tiny_llama_dir: Path, device: torch.device
) -> None:
    data = write_tasks(tmp_path / "data")
    chosen = {"model__dtype": "bfloat16", "train__max_steps": 12, "train__deterministic": True}
    whole, killed = (config_of(tmp_path / name, tiny_llama_dir, data, device, **chosen) for name in ("whole", "killed"))
    done = mft("train", whole)
    assert done.returncode == 0, done.stderr
    run_with_kills(killed, tmp_path / "killed" / "run", [0.1])
    assert same_tensors(tmp_path / "whole" / "run", tmp_path / "killed" / "run")


def same_tensors(a: Path, b: Path) -> bool:
    from safetensors.torch import load_file

    def load(run: Path) -> dict[str, torch.Tensor]:
        latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
        return load_file(latest / "model" / "adapter_model.safetensors")

    ours, theirs = load(a), load(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow(reason="two runs, one of several processes")
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_take_the_steps_of_one_device(
    tmp_path: Path, tiny_llama_dir: Path, device: torch.device, ranks: int
) -> None:
    """nccl between GPUs, gloo between processes on the CPU."""
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    data = write_tasks(tmp_path / "data")
    options: dict[str, Any] = {"adapter__lora_dropout": 0.0, "train__per_device_train_batch_size": 2}
    alone = config_of(tmp_path / "alone", tiny_llama_dir, data, device, **options)
    options["train__per_device_train_batch_size"] = 2 // ranks
    together = config_of(tmp_path / "together", tiny_llama_dir, data, device, **options)
    for arguments in ((alone,), (together, "backend.name=ddp", "--nproc", ranks)):
        done = mft("train", *arguments)
        assert done.returncode == 0, done.stderr
    losses = [[record["loss"] for record in metrics(tmp_path / name / "run")] for name in ("alone", "together")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if device.type == "cpu" else 1e-4)


def test_out_of_memory_says_what_to_change(device: torch.device) -> None:
    with pytest.raises(TrainingError, match="ran out of memory") as caught, device_memory_errors():
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    (line,) = caught.value.problems
    for remedy in ("train.gradient_checkpointing", "per_device_train_batch_size", "data.max_length", "mft validate"):
        assert remedy in line


def test_a_first_step_that_fills_the_device_is_taken_again_by_the_next_plan(
    tmp_path: Path, tiny_llama_dir: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    """A GPU refuses the memory itself, after the first backward pass; a CPU raises another error, so its twin raises the GPU's."""
    data = write_tasks(tmp_path / "data", 20)
    few = {"train__max_steps": 3, "train__torch_compile": False, "train__eval_strategy": "no"}
    given, free = (config_of(tmp_path / name, tiny_llama_dir, data, device, **few) for name in ("given", "free"))
    train(load_config(given, ["train.gradient_checkpointing=selective"]))
    backward, passes = MasterAdamW.backward, list[bool]()

    def fill_the_device(self: MasterAdamW, objective: torch.Tensor, *, last: bool) -> None:
        backward(self, objective, last=last)
        passes.append(last)
        if len(passes) == 1 and device.type == "cpu":
            raise torch.OutOfMemoryError("the device is full")
        if len(passes) == 1:
            torch.empty(1 << 50, dtype=torch.uint8, device=device)

    monkeypatch.setattr(MasterAdamW, "backward", fill_the_device)
    said()
    train(load_config(free))
    assert "step 1 ran out of memory with 'recompute nothing'" in (lines := said())
    assert "Starting it again with 'recompute norms and SwiGLU'" in lines
    found, expected = ([record["loss"] for record in metrics(tmp_path / name / "run")] for name in ("free", "given"))
    assert len(found) == 3 and found == pytest.approx(expected, rel=1e-6 if device.type == "cpu" else 1e-4)


def test_another_error_of_the_device_stays_what_it_is(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="shape") as caught, device_memory_errors():
        torch.ones(2, 3, device=device) @ torch.ones(2, 3, device=device)
    assert not isinstance(caught.value, TrainingError)
