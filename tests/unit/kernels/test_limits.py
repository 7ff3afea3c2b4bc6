"""The limits of a GPU are known without one: from its compute capability, the model's sizes and the installed software."""

import logging
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from mftcoder.kernels import cross_entropy, limits
from mftcoder.kernels.adamw import AdamWRule, AdamWTensors, adamw_in_torch
from mftcoder.kernels.limits import (
    compile_problem,
    device_limits,
    lack_of_triton,
    model_limits,
    recompile_limit_reported,
)
from mftcoder.training import optimizer

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    lack_of_triton.cache_clear()
    yield
    lack_of_triton.cache_clear()


def with_capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))


def with_triton(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A machine with triton, a C compiler and Python's headers."""
    (folder / "Python.h").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("CC", "/usr/bin/cc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(folder)})


def test_a_new_gpu_with_a_compiler_lacks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_capability(monkeypatch, 9, 0)
    with_triton(monkeypatch, tmp_path)
    assert list(device_limits(GPU)) == [] and compile_problem(GPU) is None


def test_an_old_gpu_lacks_bfloat16_and_flash_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_capability(monkeypatch, 7, 5)
    with_triton(monkeypatch, tmp_path)
    assert [limit.what for limit in device_limits(GPU, torch.float32)] == ["FlashAttention"]
    first, second = device_limits(GPU)
    assert str(first) == (
        "bfloat16: this GPU has compute capability 7.5, products in bfloat16 begin with 8.0; they are computed without tensor "
        "cores, at a fraction of the speed. model.dtype=float32 for models that fit"
    )
    assert second.what == "FlashAttention" and "loop over samples" in second.cost


@pytest.mark.parametrize("missing", ["triton", "compiler", "headers"])
def test_each_thing_that_triton_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str) -> None:
    with_capability(monkeypatch, 9, 0)
    with_triton(monkeypatch, tmp_path)
    if missing == "triton":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    elif missing == "compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (tmp_path / "Python.h").unlink()
    (limit,) = device_limits(GPU)
    expected = {"triton": "triton is not installed", "compiler": "no C compiler", "headers": "Python's headers"}[
        missing
    ]
    assert limit.what == "Triton" and expected in limit.lack and "layers are not compiled" in limit.cost
    assert compile_problem(GPU) == limit.lack


def test_a_kernel_that_cannot_be_compiled_is_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_triton(monkeypatch, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if torch.cuda.device_count():
        assert lack_of_triton() is None
    else:  # triton or the device is missing: whatever that raises is told, not raised
        assert (lack_of_triton() or "").startswith("a small kernel failed: ")


def test_a_cpu_without_a_cpp_compiler_does_not_compile_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in (compile_problem(CPU) or "")


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [
        ("flags\t\t: fpu sse2 avx2", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("Features\t: fp asimd", True),
        ("Features\t: fp asimd bf16", False),
        ("", False),  # a system that does not tell
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, lacks: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(limits, "CPU_INFO", tmp_path / "cpuinfo")
    assert [limit.remedy for limit in device_limits(CPU)] == ["model.dtype=float32 for models that fit"] * lacks
    assert list(device_limits(CPU, torch.float32)) == []


@pytest.mark.parametrize(
    ("config", "dtype", "what"),
    [
        (LlamaConfig(vocab_size=32_000, hidden_size=512, num_attention_heads=8), torch.bfloat16, None),
        (LlamaConfig(vocab_size=50_257, hidden_size=512, num_attention_heads=8), torch.bfloat16, "vocabulary: 50,257"),
        (LlamaConfig(vocab_size=32_000, hidden_size=2400, num_attention_heads=8), torch.bfloat16, "heads of 8, 16, ... 256"),
        (LlamaConfig(vocab_size=32_000, hidden_size=512, num_attention_heads=8), torch.float32, "needs bfloat16"),
    ],
)  # fmt: skip
def test_sizes_that_a_kernel_does_not_support_are_named(
    monkeypatch: pytest.MonkeyPatch, config: LlamaConfig, dtype: torch.dtype, what: str | None
) -> None:
    with_capability(monkeypatch, 9, 0)
    found = [str(limit) for limit in model_limits(GPU, config, dtype)]
    assert found == [] if what is None else what in found[0] and len(found) == 1
    assert list(model_limits(CPU, config, dtype)) == []


def test_without_triton_the_plain_twin_computes_the_loss_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    asked: list[torch.Tensor] = []
    monkeypatch.setattr(cross_entropy, "lack_of_triton", lambda: "no C compiler")
    monkeypatch.setattr(cross_entropy, "slope_in_torch", lambda *tensors: asked.extend(tensors))
    with FakeTensorMode():
        logits = torch.empty(3, 7, device="cuda", dtype=torch.bfloat16)
        cross_entropy._losses_and_slope(logits, torch.empty(3, device="cuda"), torch.empty(3, device="cuda"))
    assert asked[0] is logits


def test_without_triton_the_optimizer_on_a_gpu_is_the_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(optimizer, "lack_of_triton", lambda: "no C compiler")
    with FakeTensorMode():
        weight = torch.empty(3, device="cuda")
        update: Any = optimizer._kernel([AdamWTensors(weight, weight, weight, weight, 0.0)], AdamWRule(0.9, 0.99, 1e-8))
    assert update.func is adamw_in_torch


def test_a_function_with_too_many_graphs_is_reported_in_one_line_once(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    with torch._dynamo.config.patch(recompile_limit=1), recompile_limit_reported(lines.append):
        for _ in range(2):
            torch._dynamo.reset()
            doubled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
            assert [doubled(torch.ones(size)).sum().item() for size in (2, 3, 4)] == [4, 6, 8]
    (line,) = lines
    assert "\n" not in line and "test_limits.py" in line and "size mismatch at index 0" in line
    assert "recompile_limit" not in caplog.text


def test_outside_of_a_run_the_compilers_own_warning_stays(caplog: pytest.LogCaptureFixture) -> None:
    with recompile_limit_reported(lambda line: None):
        pass
    logger = logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(caplog.handler)
    try:
        logger.warning("torch._dynamo hit config.%s (%s)", "recompile_limit", 8)
    finally:
        logger.removeHandler(caplog.handler)
    assert "recompile_limit" in caplog.text
