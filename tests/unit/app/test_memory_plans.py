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
from mftcoder.errors import TrainingError
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
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=128, num_hidden_layers=12, num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deep_llama: Path) -> Callable[..., Any]:
    """`run("name", limit, **train_settings)`: the memory that a run's steps used, and what the run left behind."""
    write_tasks(tmp_path / "data", 20)
    loop = TrainingRun.run

    def run_it(name: str, limit: float = math.inf, **settings: Any) -> tuple[LimitedMemory, dict[str, Any]]:
        memory = LimitedMemory(limit)

        def run_in_memory(self: TrainingRun) -> Summary:
            with memory:
                return loop(self)

        monkeypatch.setattr(TrainingRun, "run", run_in_memory)
        (tmp_path / name).mkdir(exist_ok=True)
        options = {"train__max_steps": 2, "train__eval_strategy": "no", "train__gradient_accumulation_steps": 1}
        options |= {f"train__{field}": value for field, value in settings.items()}
        train(load_config(write_config(tmp_path / name, deep_llama, tmp_path / "data", **options)), allow_changes=True)
        return memory, left_behind(tmp_path / name / "run")

    return run_it


def left_behind(run_dir: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "seconds", "tokens_per_second")
    newest = (run_dir / "checkpoints" / "latest").read_text().strip()
    return {
        "records": [{key: value for key, value in record.items() if key not in clock} for record in records],
        "seen": json.loads((run_dir / "checkpoints" / newest / "progress.json").read_text())["tokens_seen"],
    }


def test_a_step_that_does_not_fit_is_taken_by_the_next_plan(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    free, expected = run("free")
    small, same = run("small", gradient_checkpointing=True)
    assert small.peak < 0.8 * free.peak and same == expected
    capsys.readouterr()
    _, found = run("limited", limit=(small.peak + free.peak) / 2)
    assert found == expected
    assert [record["step"] for record in found["records"]] == [1, 2]
    said = " ".join(capsys.readouterr().out.split())
    assert "step 1 ran out of memory with 'recompute nothing'" in said
    assert "Starting it again with 'recompute norms and SwiGLU'" in said


def test_a_resumed_run_goes_on_from_its_checkpoint_by_the_next_plan(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    free, expected = run("free", max_steps=3)
    small, _ = run("resumed", max_steps=1, gradient_checkpointing=True)
    _, found = run("resumed", limit=(small.peak + free.peak) / 2, max_steps=3)
    assert [record["step"] for record in found["records"]] == [1, 2, 3]
    assert found["seen"] == expected["seen"]
    assert "step 2 ran out of memory" in " ".join(capsys.readouterr().out.split())


def test_a_setting_that_was_given_is_kept(run: Callable[..., Any]) -> None:
    free, _ = run("free", max_steps=1)
    with pytest.raises(TrainingError, match="the device ran out of memory"):
        run("limited", limit=0.9 * free.peak, gradient_checkpointing=False, max_steps=1)
