"""On a GPU a run says in one line which memory plan it takes and why; here for a GPU of a given size and a model as shapes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mftcoder.app.training import plan_choice
from mftcoder.app.training.plan_choice import plans_of
from mftcoder.config.load import parse_config
from mftcoder.config.schema import BackendConfig, RunConfig
from mftcoder.models.gpu_memory import plans as memory
from mftcoder.models.loading.resolve import ResolvedModel
from mftcoder.training.backends.process_group import OneProcess
from mftcoder.training.checkpoints.checkpoint import Progress
from tests.unit.models.gpu_memory.test_plans import GIB, QWEN_1_5B


def run_config(**sections: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "model": {"model_name_or_path": "m"}, "adapter": {"type": "full"}, "data": {"max_length": 4096}, "tasks": {"t": "d"},
        "output_dir": "o",
    }  # fmt: skip
    return parse_config(raw | sections, origin="test")


class OnGpu:
    """`on_gpu(config, gigabytes)`: the plans of a run on such a card; the lines are in `said`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]):
        self._monkeypatch, self._said = monkeypatch, said
        self.said = ""

    def __call__(self, config: RunConfig, gigabytes: int, begun: RunConfig | None = None, host: float = 256) -> Any:
        free, on_host = gigabytes * memory.USABLE * GIB, host * GIB
        self._monkeypatch.setattr(plan_choice, "device_memory", lambda device: free)
        self._monkeypatch.setattr(plan_choice, "host_memory", lambda processes: on_host)
        group = OneProcess(BackendConfig(device="cpu"))
        backend: Any = SimpleNamespace(
            device=torch.device("cuda"), config=config.backend, group=group, check=lambda _: None
        )
        resolved = ResolvedModel("qwen", Path(), QWEN_1_5B, 0)
        progress = Progress(config=begun.model_dump(mode="json")) if begun else None
        checkpoint: Any = SimpleNamespace(progress=progress) if progress else None
        found = plans_of(config, backend, checkpoint, resolved)
        self.said = self._said()
        return found


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> OnGpu:
    return OnGpu(monkeypatch, said)


def test_where_there_is_room_the_line_names_the_plan_and_no_warning(on_gpu: OnGpu) -> None:
    first, *_ = on_gpu(run_config(), 80)
    assert first.train.gradient_checkpointing is False and first.train.optim == "adamw"
    assert on_gpu.said.startswith("memory: recompute nothing, about ") and on_gpu.said.count("\n") == 0
    assert "because" not in on_gpu.said and "numbers" not in on_gpu.said


def test_8_bits_are_taken_with_the_reason_and_what_they_change(on_gpu: OnGpu) -> None:
    pytest.importorskip("bitsandbytes")
    first, last = on_gpu(run_config(), 24)
    assert (first.train.optim, last.backend.offload) == ("adamw_8bit", "all")
    assert "moments in 8 bits, about " in on_gpu.said
    assert "because 'recompute all layers' would take " in on_gpu.said
    assert "train with other numbers than float32 ones; train.optim: adamw keeps those" in on_gpu.said


def test_without_bitsandbytes_the_hosts_memory_is_next_and_a_line_says_what_is_missing(
    on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (only,) = on_gpu(run_config(), 24)
    assert (only.backend.name, only.backend.offload, only.train.optim) == ("fsdp2", "all", "adamw")
    lack, chosen = on_gpu.said.splitlines()
    assert "which would have room: bitsandbytes is not installed: pip install 'mftcoder[qlora]'" in lack
    assert "weights and moments in the host's memory, about " in chosen and "which is slow" in chosen


def test_where_nothing_fits_the_smallest_is_tried_all_the_same(on_gpu: OnGpu) -> None:
    (only,) = on_gpu(run_config(), 2, host=1024)
    assert only.backend.offload == "all"
    assert "This is more than there is, and is tried all the same" in on_gpu.said


def test_what_was_given_is_kept(on_gpu: OnGpu) -> None:
    given = run_config(train={"optim": "adamw", "gradient_checkpointing": "selective"}, backend={"offload": "none"})
    assert on_gpu(given, 24) == [given]


def test_a_run_that_goes_on_keeps_the_optimizer_of_its_checkpoint_on_a_larger_card(on_gpu: OnGpu) -> None:
    pytest.importorskip("bitsandbytes")
    begun, *_ = on_gpu(run_config(), 24)
    found = on_gpu(run_config(), 80, begun)
    assert found == [begun] and "numbers" not in on_gpu.said
    with_moments = on_gpu(run_config(), 40)[0]
    assert with_moments.train.optim == "adamw"
    assert {plan.train.optim for plan in on_gpu(run_config(), 24, with_moments)} == {"adamw"}


def test_a_model_that_cannot_be_counted_is_named_with_the_reason(
    on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(memory, "count_activations", refuse)
    on_gpu(run_config(), 80)
    assert "memory: activations come from a formula over the model's sizes" in on_gpu.said
    assert "NotImplementedError: no meta kernel" in on_gpu.said
