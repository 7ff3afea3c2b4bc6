"""Every Triton kernel compiles for real GPUs without one, and equals its twin in Triton's interpreter.

Needs triton, which comes with the CUDA build of torch; skips without it.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
REPOSITORY = Path(__file__).parents[3]
ARCHITECTURES = (75, 80, 90, 100)


def sources() -> dict[str, Any]:
    """Each kernel with its argument types and its compile-time constants."""
    import triton.language as tl

    from mftcoder.kernels.adamw_triton import BLOCK as ADAMW_BLOCK
    from mftcoder.kernels.adamw_triton import WARPS, _adamw
    from mftcoder.kernels.cross_entropy_triton import BLOCK, _slope
    from mftcoder.kernels.linear.fp8_triton import BLOCK as ROUND_BLOCK
    from mftcoder.kernels.linear.fp8_triton import TILE, _round, _transpose

    fixed = {
        "gradient_type": tl.bfloat16, "master_type": tl.float32, "weight_type": tl.bfloat16, "has_copy": True,
        "whole": True, "aligned": True, "stochastic": False, "block": ADAMW_BLOCK,
    }  # fmt: skip
    adamw = ["*i64", "*i32", "*i64", *["*fp32"] * 5, *["fp32"] * 4, "i32"]
    return {
        "adamw": (_adamw, adamw, fixed, WARPS),
        "adamw, last piece": (_adamw, adamw, {**fixed, "whole": False}, WARPS),
        "adamw, drawn rounding": (
            _adamw, adamw, {**fixed, "master_type": tl.bfloat16, "has_copy": False, "stochastic": True}, WARPS
        ),
        "cross entropy": (_slope, ["*bf16", "*i64", "*fp32", "*fp32", "i32"], {"vocabulary": 151_936, "block": BLOCK}, 16),
        "e4m3 rounding": (
            _round, ["*bf16", "*fp8e4nv", "*fp32", "i32", "i32", "fp32"], {"width": 8960, "block": ROUND_BLOCK}, 4
        ),
        "transposed bytes": (_transpose, ["*i8", "*i8", "i32", "i32"], {"tile": TILE}, 4),
    }  # fmt: skip


KERNELS = ("adamw", "adamw, last piece", "adamw, drawn rounding", "cross entropy", "transposed bytes")
E4M3 = (89, 90, 100)  # Triton has no e4m3 for older GPUs, where the kernel is never launched


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, architecture) for name in KERNELS for architecture in ARCHITECTURES]
    + [("e4m3 rounding", architecture) for architecture in E4M3],
)
def test_every_kernel_compiles_without_spilling_registers(name: str, architecture: int) -> None:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, fixed, warps = sources()[name]
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(fixed)], strict=True))
    pointers = {(n,): [["tt.divisibility", 16]] for n, kind in enumerate(types) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=pointers)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    print(
        f"{name}, sm_{architecture}: {registers} registers, {compiled.metadata.shared} bytes shared, {stack + local} spilled"
    )
    assert stack + local == 0


def assembly(name: str, architecture: int) -> str:
    """The kernel's PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, fixed, warps = sources()[name]
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(fixed)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    target = GPUTarget("cuda", architecture, 32)
    return str(triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"])


@pytest.mark.parametrize("architecture", E4M3)
def test_rounding_to_e4m3_is_to_the_nearest_and_has_no_minimum_or_maximum_that_passes_nan_on(architecture: int) -> None:
    """Next to such an instruction Triton stores wrong bytes (https://github.com/triton-lang/triton/issues/11111)."""
    ptx = assembly("e4m3 rounding", architecture)
    assert "NaN" not in ptx
    # By way of float16 on 8.9, which changes no bfloat16 number of this range.
    assert f"cvt.rn.satfinite.e4m3x2.{'f16x2' if architecture == 89 else 'f32'}" in ptx


def test_the_optimizer_reads_and_writes_whole_vectors() -> None:
    ptx = assembly("adamw", 90)
    vectors = len(re.findall(r"(?:ld|st)\.global[.\w:]*\.v4\.b32", ptx))
    assert vectors == 1 + 2 + 2 + 2 + 2 + 2 + 2 + 1  # the gradient; master and both moments in and out; the weight
    assert "cvt.rn.bf16" in ptx  # weights are rounded to the nearest


@pytest.mark.parametrize("file", ["test_adamw_triton.py", "test_cross_entropy_triton.py"])
def test_kernels_equal_their_twins_in_the_interpreter(file: str) -> None:
    """The tests for a GPU run on the CPU; the interpreter must be chosen before triton is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=",
        f"tests/gpu/{file}",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
