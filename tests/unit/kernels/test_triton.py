"""Every Triton kernel becomes code for real GPUs without one, and equals its twin in Triton's interpreter.

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
ARCHITECTURES = (80, 90, 100)


def sources() -> dict[str, Any]:
    """Each kernel as it is launched: its argument types, and what is fixed when it is compiled."""
    import triton.language as tl

    from mftcoder.kernels.adamw_triton import BLOCK as ADAMW_BLOCK
    from mftcoder.kernels.adamw_triton import WARPS, _adamw
    from mftcoder.kernels.cross_entropy_triton import BLOCK, _slope

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
        "cross entropy": (_slope, ["*bf16", "*i64", "*fp32", "*fp32", "i32", "i32"], {"block": BLOCK}, 16),
    }  # fmt: skip


KERNELS = ("adamw", "adamw, last piece", "adamw, drawn rounding", "cross entropy")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
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


def test_the_optimizer_reads_and_writes_whole_vectors() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, fixed, warps = sources()["adamw"]
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(fixed)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]
    vectors = len(re.findall(r"(?:ld|st)\.global[.\w:]*\.v4\.b32", ptx))
    assert vectors == 1 + 2 + 2 + 2 + 2 + 2 + 2 + 1  # the gradient; master and both moments in and out; the weight
    assert "cvt.rn.bf16" in ptx  # weights are rounded to the nearest


@pytest.mark.parametrize("file", ["test_adamw_triton.py", "test_cross_entropy_triton.py"])
def test_kernels_equal_their_twins_in_the_interpreter(file: str) -> None:
    """The tests for a GPU, on the CPU; the interpreter must be chosen before triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"tests/gpu/{file}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
