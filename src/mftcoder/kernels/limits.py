"""The parts of the fast path that a GPU or its software cannot run, what runs instead, and the remedy.

These are not errors: each part has a slower alternative with the same results.
"""

import functools
import importlib.util
import logging
import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mftcoder.errors import reason
from mftcoder.kernels.attention import varlen_problem
from mftcoder.kernels.flash import head_sizes

TENSOR_CORES_FOR_BF16 = (8, 0)  # compute capability; FlashAttention needs the same
FLOAT32 = "model.dtype=float32 for models that fit"
CPU_INFO = Path("/proc/cpuinfo")  # of Linux
ALIGNED = 8  # 16 bytes of bfloat16: the fastest products need rows of a multiple of this


@dataclass(frozen=True)
class Limit:
    """One part that is missing. `cost` says what runs instead and what that costs; `remedy` what to do, if anything."""

    what: str
    lack: str
    cost: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.lack}; {self.cost}. {self.remedy}".strip()


def device_limits(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Iterator[Limit]:
    """The limits of one GPU, or of the CPU, for a model of `dtype`."""
    if device.type != "cuda":
        if dtype == torch.bfloat16 and not has_bfloat16(device):
            cost = "they are emulated, much slower than in float32"
            yield Limit("bfloat16", "this CPU has no instructions for its products", cost, FLOAT32)
        return
    capability = torch.cuda.get_device_capability(device)
    shown = ".".join(map(str, capability))
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        lack = f"this GPU has compute capability {shown}, products in bfloat16 begin with 8.0"
        cost = "they are computed without tensor cores, at a fraction of the speed"
        yield Limit("bfloat16", lack, cost, FLOAT32)
    if problem := varlen_problem(torch.bfloat16, 64, 64, 0.0, device):
        cost = "packed rows are attended in a loop over samples, which takes a launch a sample and layer"
        yield Limit("FlashAttention", problem, cost)
    if missing := lack_of_triton():
        cost = "the head's loss and the optimizer run as several plain kernels, and layers are not compiled"
        yield Limit("Triton", missing, cost, "apt install gcc python3-dev, or: conda install gcc_linux-64")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself. True for a CPU that does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= TENSOR_CORES_FOR_BF16
    told = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.is_file() else ""
    flags = next((line for line in told.splitlines() if line.lower().startswith(("flags", "features"))), "bf16")
    return "bf16" in flags


def faster_dtype() -> str:
    """The dtype that training is fastest in here: bfloat16, or float32 where bfloat16 is emulated."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if has_bfloat16(device) else "float32"


def model_limits(device: torch.device, model_config: Any, dtype: torch.dtype) -> Iterator[Limit]:
    """The limits of one model on one GPU, from its head sizes and its vocabulary."""
    if device.type != "cuda":
        return
    config = model_config.get_text_config()
    size, values = head_sizes(config)
    fits_otherwise = varlen_problem(torch.bfloat16, 64, 64, 0.0, device) is None
    problem = varlen_problem(dtype, size, values, 0.0, device)
    if problem and fits_otherwise:
        yield Limit("FlashAttention", problem, "packed rows are attended in a loop over samples, which is slower")
    if config.vocab_size % ALIGNED:
        cost = "the output layer's products cannot use the fastest kernels"
        yield Limit("vocabulary", f"{config.vocab_size:,} tokens are not a multiple of {ALIGNED}", cost)


@functools.cache
def lack_of_triton() -> str | None:
    """Why Triton's kernels cannot run here; None if they can. Triton compiles a piece of C for each kernel at its first run."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler is found (gcc, clang or $CC)"
    # Where Triton looks for them (triton/runtime/build.py).
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not headers.is_file():
        return f"Python's headers are not installed ({headers})"
    return _small_kernel_problem() if torch.cuda.is_available() else None


def _small_kernel_problem() -> str | None:
    """What goes wrong when a small kernel is compiled and run, whatever Triton, its compiler or the driver raise."""
    try:
        from mftcoder.kernels.cross_entropy_triton import slope_in_place

        logits, target = torch.zeros(1, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
        loss = slope_in_place(logits, target, torch.ones(1, device="cuda")).item()
    except Exception as error:
        return f"a small kernel failed: {type(error).__name__}: {reason(error)}"
    return None if abs(loss - math.log(2)) < 1e-3 else "a small kernel gave a wrong result"


def compile_problem(device: torch.device) -> str | None:
    """Why layers cannot be compiled for this device; None if they can."""
    if device.type == "cuda":
        return lack_of_triton()
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return None if found else "no C++ compiler is found (g++, clang++ or $CXX)"


@contextmanager
def recompile_limit_reported(report: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, give `report` one line if the compiler stops making new graphs, in place of the compiler's own warnings."""
    compiler, limit = logging.getLogger("torch._dynamo.convert_frame"), _RecompileLimit(report)
    compiler.addFilter(limit)
    try:
        yield
    finally:
        compiler.removeFilter(limit)


class _RecompileLimit(logging.Filter):
    """Takes the compiler's warnings that a function has too many graphs out of the log, and reports the first one."""

    def __init__(self, report: Callable[[str], None]):
        super().__init__()
        self._report, self._reported = report, False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record stays in the log."""
        said = record.getMessage()
        if "recompile_limit" not in said:
            return True
        if not self._reported:
            self._reported = True
            facts = dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)
            self._report(
                f"train.torch_compile: the compiler has made its largest number of graphs for {facts.get('function', 'a function')}. "
                "Calls that fit none of them now run uncompiled, with the same results, but slower. The last graph did not fit "
                f"because: {facts.get('last reason', 'unknown')}. TORCH_LOGS=recompiles shows every reason; train.torch_compile=false "
                "compiles nothing"
            )
        return False
