"""A first step that does not fit the device is taken again by a smaller plan, and nothing of the data is lost or repeated."""

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mftcoder.app.training.train import train
from mftcoder.config.load import load_config
from mftcoder.errors import CheckpointError, TrainingError
from mftcoder.training.loop import Summary, TrainingRun
from tests.integration.test_train_cli import write_config, write_tasks


class LimitedMemory(TorchDispatchMode):
    """A device of `limit` bytes: an operation raises torch's own error when what it makes does not fit beside what is held."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit, self.held, self.peak = limit, 0, 0
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known[storage] = True
                self.held += storage.nbytes()
                weakref.finalize(storage, self._give_back, storage.nbytes())
        self.peak = max(self.peak, self.held)
        if self.held > self.limit:
            raise torch.OutOfMemoryError(f"{self.held} bytes are held, of {self.limit:.0f}")
        return made

    def _give_back(self, size: int) -> None:
        self.held -= size


@pytest.fixture(scope="module")
def deep_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """Most of whose memory is activations of layers."""
    folder = tmp_path_factory.mktemp("deep-llama")
    return llama(folder, tiny_tokenizer_dir, hidden_size=16, intermediate_size=128, num_hidden_layers=6)


def llama(folder: Path, tokenizer_dir: Path, **sizes: int) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deep_llama: Path) -> Callable[..., Any]:
    """`run("name", limit, **train_settings)`: the memory that a run's steps used, and what the run left behind."""
    write_tasks(tmp_path / "data", 20)
    loop = TrainingRun.run

    def run_it(
        name: str,
        limit: float = math.inf,
        model: Path = deep_llama,
        adapter: str = "lora",
        offload: str = "auto",
        **settings: Any,
    ) -> tuple[LimitedMemory, dict[str, Any]]:
        memory = LimitedMemory(limit)

        def run_in_memory(self: TrainingRun) -> Summary:
            with memory:
                return loop(self)

        monkeypatch.setattr(TrainingRun, "run", run_in_memory)
        (tmp_path / name).mkdir(exist_ok=True)
        options = {"train__max_steps": 2, "train__eval_strategy": "no", "train__gradient_accumulation_steps": 1}
        options |= {f"train__{field}": value for field, value in settings.items()}
        options |= {"adapter__type": adapter, "backend__offload": offload}
        train(load_config(write_config(tmp_path / name, model, tmp_path / "data", **options)), allow_changes=True)
        return memory, left_behind(tmp_path / name / "run")

    return run_it


def left_behind(run_dir: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "seconds", "tokens_per_second")
    newest = (run_dir / "checkpoints" / "latest").read_text().strip()
    progress = json.loads((run_dir / "checkpoints" / newest / "progress.json").read_text())
    train, backend = progress["config"]["train"], progress["config"]["backend"]
    return {
        "plan": {name: train[name] for name in ("gradient_checkpointing", "optim")} | {"offload": backend["offload"]},
        "records": [{key: value for key, value in record.items() if key not in clock} for record in records],
        "seen": progress["tokens_seen"],
    }


def test_a_step_that_does_not_fit_is_taken_by_the_next_plan(run: Callable[..., Any], said: Callable[[], str]) -> None:
    free, expected = run("free")
    small, same = run("small", gradient_checkpointing=True)
    assert small.peak < 0.8 * free.peak and same | {"plan": None} == expected | {"plan": None}
    said()
    _, found = run("limited", limit=(small.peak + free.peak) / 2)
    assert found | {"plan": None} == expected | {"plan": None}
    assert found["plan"]["gradient_checkpointing"] not in (False, "auto") and found["plan"]["optim"] == "adamw"
    assert [record["step"] for record in found["records"]] == [1, 2]
    lines = said()
    assert "step 1 ran out of memory with 'recompute nothing'" in lines
    assert "Starting it again with 'recompute norms and SwiGLU'" in lines


def test_a_resumed_run_goes_on_from_its_checkpoint_by_the_next_plan(
    run: Callable[..., Any], said: Callable[[], str]
) -> None:
    free, expected = run("free", max_steps=3)
    small, _ = run("small", max_steps=1, gradient_checkpointing=True)
    run("resumed", max_steps=1)
    _, found = run("resumed", limit=(small.peak + free.peak) / 2, max_steps=3)
    assert [record["step"] for record in found["records"]] == [1, 2, 3]
    assert found["seen"] == expected["seen"]
    assert "step 2 ran out of memory" in said()


def test_a_later_step_that_does_not_fit_ends_the_run_with_remedies_and_the_checkpoint_to_go_on_from(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run("whole", max_steps=4, save_steps=2)
    step = TrainingRun._step

    def full_at_the_third(self: TrainingRun, *arguments: Any) -> None:
        if self.progress.step == 2:
            raise torch.OutOfMemoryError("the device is full")
        step(self, *arguments)

    with monkeypatch.context() as faulty, pytest.raises(TrainingError) as caught:
        faulty.setattr(TrainingRun, "_step", full_at_the_third)
        run("later", max_steps=4, save_steps=2)
    message = str(caught.value)
    assert message.startswith("the device ran out of memory: the device is full Try train.gradient_checkpointing=true")
    assert message.endswith("later/run/checkpoints/step-00000002; the same command goes on from there.")
    _, found = run("later", max_steps=4, save_steps=2)
    assert found == expected


def test_a_setting_that_was_given_is_kept(run: Callable[..., Any]) -> None:
    free, _ = run("free", max_steps=1)
    with pytest.raises(TrainingError, match="the device ran out of memory"):
        run("limited", limit=0.9 * free.peak, gradient_checkpointing=False, optim="adamw", offload="none", max_steps=1)


def test_a_run_that_goes_on_keeps_the_plan_that_it_fell_to(run: Callable[..., Any], said: Callable[[], str]) -> None:
    large, free = run("free", max_steps=1)
    small, _ = run("small", max_steps=1, gradient_checkpointing=True)
    _, begun = run("resumed", limit=(small.peak + large.peak) / 2, max_steps=1)
    said()
    _, found = run("resumed", max_steps=2)
    assert found["plan"] == begun["plan"] != free["plan"]
    assert "ran out of memory" not in said()


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """Most of whose memory, fully trained on short samples, is moments."""
    return llama(
        tmp_path_factory.mktemp("wide-llama"),
        tiny_tokenizer_dir,
        hidden_size=64,
        intermediate_size=512,
        num_hidden_layers=3,
    )


def test_a_step_that_fits_no_other_way_is_taken_with_moments_in_8_bits_to_the_end_of_the_run(
    run: Callable[..., Any], wide_llama: Path, said: Callable[[], str]
) -> None:
    pytest.importorskip("bitsandbytes")
    common = {"model": wide_llama, "adapter": "full", "save_steps": 1}
    given = {"gradient_checkpointing": True, "max_steps": 1}
    whole, _ = run("whole", **common, **given, optim="adamw")
    small, _ = run("small", **common, **given, optim="adamw_8bit")
    assert small.peak < 0.8 * whole.peak
    said()
    run("limited", **common, max_steps=1, limit=(small.peak + whole.peak) / 2)
    lines = said()
    assert (
        "Starting it again with 'recompute all layers, moments in 8 bits'. Moments in 8 bits train with other numbers"
        in lines
    )
    _, found = run("limited", **common, max_steps=3)
    assert found["plan"] == {"gradient_checkpointing": True, "optim": "adamw_8bit", "offload": "none"}
    _, expected = run("small", **common, max_steps=3, optim="adamw_8bit")
    assert losses(found) == losses(expected)  # the resumed run kept its plan, to the bit


def test_a_run_with_moments_in_8_bits_is_not_gone_on_with_by_another_optimizer(run: Callable[..., Any]) -> None:
    pytest.importorskip("bitsandbytes")
    run("begun", max_steps=1, optim="adamw_8bit")
    with pytest.raises(CheckpointError, match=r"train\.optim: 'adamw_8bit' -> 'adamw'"):
        run("begun", optim="adamw")


def test_a_step_that_does_not_fit_the_device_at_all_is_taken_from_the_hosts_memory(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    _, expected = run("whole", optim="adamw")
    said()
    loop = TrainingRun._step

    def only_from_the_host(self: TrainingRun, *arguments: Any) -> None:
        if self.backend.config.offload != "all":
            raise torch.OutOfMemoryError("the device is full")
        loop(self, *arguments)

    monkeypatch.setattr(TrainingRun, "_step", only_from_the_host)
    _, found = run("limited", optim="adamw", gradient_checkpointing=True)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-5)
    assert found["plan"] == {"gradient_checkpointing": True, "optim": "adamw", "offload": "all"}
    lines = said()
    assert (
        "Starting it again with 'recompute all layers, weights and moments in the host's memory'. What lies in" in lines
    )


def losses(found: dict[str, Any]) -> list[float]:
    return [record["loss"] for record in found["records"] if record["kind"] == "train"]
