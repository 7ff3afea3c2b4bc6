"""A newer FlashAttention is taken only where the GPU has it, torch can activate it, and it gives what version 2 gives."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import _registry, current_flash_attention_impl
from transformers import LlamaConfig, MistralConfig

from mftcoder.kernels import attention, flash
from mftcoder.kernels.flash import VERSIONS, Heads, attend_on_trial, lack_of, use_newest, use_torchs_own, versions_for

GPU, CPU = torch.device("cuda"), torch.device("cpu")
FA3, FA4 = VERSIONS
HEADS = Heads(queries=4, keys=2, size=16, value_size=8)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = set(sys.modules)
    yield
    use_torchs_own()
    for name in [name for name in sys.modules.keys() - before if name.startswith("flash_attn")]:
        del sys.modules[name]  # the packages of a test are gone


def with_card(monkeypatch: pytest.MonkeyPatch, major: int, minor: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))


def with_package(monkeypatch: pytest.MonkeyPatch, folder: Path, version: flash.FlashVersion) -> None:
    """A package of that name without a kernel in it."""
    path = folder.joinpath(*version.module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    monkeypatch.syspath_prepend(str(folder))


class Kernels:
    """What a version of FlashAttention registers with torch."""

    removed = False

    def remove(self) -> None:
        self.removed = True


def with_results(monkeypatch: pytest.MonkeyPatch, result: Callable[[str | None], Tensor]) -> None:
    """A trial whose gradient depends on the activated version."""
    trial = lambda *_: {"result": torch.ones(3), "gradient of the keys": result(current_flash_attention_impl())}  # noqa: E731
    monkeypatch.setattr(flash, "attend_on_trial", trial)


@pytest.mark.parametrize(("major", "expected"), [(7, ()), (8, ()), (9, (FA3, FA4)), (10, (FA4,)), (12, ())])
def test_a_version_is_offered_to_gpus_with_its_kernels(
    monkeypatch: pytest.MonkeyPatch, major: int, expected: tuple[flash.FlashVersion, ...]
) -> None:
    with_card(monkeypatch, major)
    assert tuple(versions_for(GPU)) == expected and versions_for(CPU) == []


def test_a_version_that_is_not_installed_is_skipped_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    with_card(monkeypatch, 9)
    said: list[str] = []
    assert use_newest(GPU, HEADS, said.append) is None and said == []
    assert [lack_of(version) for version in VERSIONS] == [f"{version.module} is not installed" for version in VERSIONS]


def test_a_version_with_the_same_results_is_used_and_can_be_deactivated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_card(monkeypatch, 9)
    with_package(monkeypatch, tmp_path, FA3)
    with_results(monkeypatch, lambda active: torch.full((3,), 1.001 if active else 1.0))
    kernels, said = Kernels(), []
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", lambda: kernels)
    assert use_newest(GPU, HEADS, said.append) is FA3 and said == []
    assert current_flash_attention_impl() == "FA3"
    use_torchs_own()
    assert current_flash_attention_impl() is None and kernels.removed


def test_a_version_with_other_results_is_rejected_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_card(monkeypatch, 9)
    with_package(monkeypatch, tmp_path, FA3)
    with_results(monkeypatch, lambda active: torch.full((3,), 1.5 if active else 1.0))
    kernels, said = Kernels(), []
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", lambda: kernels)
    assert use_newest(GPU, HEADS, said.append) is None
    (line,) = said
    assert "FlashAttention 3 is installed but not used: its gradient of the keys has a relative distance of 0.5" in line
    assert current_flash_attention_impl() is None and kernels.removed


def test_results_that_are_not_finite_are_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_card(monkeypatch, 9)
    with_package(monkeypatch, tmp_path, FA3)
    with_results(monkeypatch, lambda active: torch.full((3,), torch.nan if active else 1.0))
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", Kernels)
    assert use_newest(GPU, HEADS, lambda line: None) is None


def test_after_a_package_that_torch_cannot_activate_the_next_one_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Version 3 is activated by torch's own code, which finds no kernels in the package."""
    with_card(monkeypatch, 9)
    for version in VERSIONS:
        with_package(monkeypatch, tmp_path, version)
    with_results(monkeypatch, lambda active: torch.ones(3))
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA4", Kernels)
    said: list[str] = []
    assert use_newest(GPU, HEADS, said.append) is FA4
    (line,) = said
    assert "FlashAttention 3 is installed but not used: RuntimeError: Module 'flash_attn_interface'" in line


def varlen_on_the_cpu(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: Any, scale: float, window_size: tuple[int, int], **__: Any
) -> Tensor:
    """Sample by sample; q [T, H, D], k and v [T, G, D]."""
    parts, (back, _ahead) = [], window_size
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        one = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        seen = seen if back < 0 else seen.triu(-back)
        parts.append(
            F.scaled_dot_product_attention(*one, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 32])
def test_the_trial_is_attention_over_packed_samples_with_the_models_heads(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    monkeypatch.setattr(attention, "varlen_problem", lambda *_: None)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_on_the_cpu)
    found = attend_on_trial(CPU, Heads(4, 2, 16, 8, window))
    assert len(found) == (4 if window is None else 8)
    monkeypatch.setattr(flash, "varlen_attention", by_segments)
    for what, expected in attend_on_trial(CPU, Heads(4, 2, 16, 8, window)).items():
        torch.testing.assert_close(found[what], expected, rtol=0.05, atol=0.05)
    assert found["result"].shape == (1, sum(flash.LENGTHS), 4, 8)
    assert found["gradient of the keys"].shape == (1, 2, sum(flash.LENGTHS), 16)


def by_segments(module: nn.Module, *inputs: Any, sliding_window: int | None, **_: Any) -> Any:
    return attention.segments_attention(
        module, *inputs, segment_lengths=(flash.LENGTHS,), sliding_window=sliding_window
    )


def test_heads_are_those_of_the_model() -> None:
    llama = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    assert Heads.of(llama) == Heads(4, 2, 16, 16)
    assert Heads.of(MistralConfig(hidden_size=64, num_attention_heads=4, sliding_window=9)).window == 9
