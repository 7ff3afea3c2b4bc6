"""`mft doctor`: what this machine has. For each thing that is missing: what that means and how to get it. Changes nothing.

A missing thing is not an error: the exit code is 0 as long as the examination itself works.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mftcoder import __version__, hub
from mftcoder.errors import ExecutionError, reason
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.models.files import download

if TYPE_CHECKING:
    import torch

GIB = 2**30
TRAIN = "pip install 'mftcoder[train]'"
CURATE = "pip install 'mftcoder[curate]'"
State = Literal["ok", "note", "lack"]


@dataclass(frozen=True)
class Finding:
    """The result for one thing. `meaning` says what its absence costs, `remedy` what to type. Both are empty if all is well."""

    area: str
    name: str
    state: State
    value: str
    meaning: str = ""
    remedy: str = ""


def doctor(*, as_json: bool = False) -> list[Finding]:
    """Examine and print. The findings are also returned."""
    findings = [finding for area, examine in EXAMINATIONS.items() for finding in _safely(area, examine)]
    if as_json:
        print(orjson.dumps([asdict(finding) for finding in findings], option=orjson.OPT_INDENT_2).decode())
    else:
        _print(findings)
    return findings


def _safely(area: str, examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one area. A failed examination is a finding too, so the other areas are still shown."""
    try:
        yield from examine()
    except Exception as error:
        found = f"{type(error).__name__}: {reason(error)}"
        yield Finding(area, "examination", "lack", "failed", found, "please report this line")


def _software() -> Iterator[Finding]:
    yield Finding("software", "mftcoder", "ok", __version__)
    yield Finding("software", "python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from (_extra(*row) for row in EXTRAS)


EXTRAS = (
    *((name, "no training and no generation", TRAIN) for name in ("torch", "transformers", "peft", "tokenizers")),
    ("safetensors", "no model folder can be read or written", TRAIN),
    (
        "bitsandbytes",
        "no model.quantization: 4bit, 8bit and 4bit-fp8, and no train.optim: adamw_8bit",
        "pip install 'mftcoder[qlora]'",
    ),
    ("gguf", ".gguf models cannot be read", "pip install 'mftcoder[gguf]'"),
    (
        "compressed_tensors",
        "releases by gptq, awq, int8 and fp8 cannot be read",
        "pip install 'mftcoder[compressed]'",
    ),
    ("sentencepiece", "tokenizer.model files cannot be read", "pip install 'mftcoder[sentencepiece]'"),
    ("datasets", "data sets and benchmarks of the Hub cannot be fetched", "pip install 'mftcoder[hub]'"),
    ("rensa", "`mft data dedup` finds exact duplicates only (near: false)", CURATE),
    ("tree_sitter", "no mining and no code: renamed in other languages than Python", CURATE),
    ("detect_secrets", "no filter rule on secrets", CURATE),
    ("py3langid", "no filter rule on the language of the prose", CURATE),
    ("torchao", "no train.fp8_recipe", "pip install 'mftcoder[fp8]'"),
    ("deepspeed", "no backends deepspeed_zero2 and deepspeed_zero3", "pip install 'mftcoder[deepspeed]'"),
    ("fastapi", "no `mft serve`", "pip install 'mftcoder[serve]'"),
    ("openvino", "models write more slowly on a CPU", "pip install 'mftcoder[openvino]'"),
    ("mcp", "no `mft assist mcp`", "pip install 'mftcoder[assist]'"),
    ("tensorboard", "no TensorBoard logs", f"{TRAIN}, or train.report_to=[]"),
)


def _extra(module: str, meaning: str, remedy: str) -> Finding:
    package = module.replace("_", "-")
    if importlib.util.find_spec(module) is None:
        return Finding("software", package, "note", "not installed", meaning, remedy)
    return Finding("software", package, "ok", importlib.metadata.version(package))


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("devices", "gpu", "note", "torch is not installed", "evaluation and reports need none", TRAIN)
        return
    import torch

    from mftcoder.kernels.limits import device_limits

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "devices",
        "cpu",
        "ok",
        f"{cores} cores, {torch.get_num_threads()} torch threads, {torch.backends.cpu.get_cpu_capability()}",
    )
    for limit in () if torch.cuda.is_available() else device_limits(torch.device("cpu")):
        yield Finding("devices", limit.what, "note", limit.lack, limit.cost, limit.remedy)
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        size = f"{facts.total_memory / GIB:.0f} GiB, compute {facts.major}.{facts.minor}"
        yield Finding("devices", f"cuda:{index}", "ok", f"{facts.name}, {size}")
        for limit in device_limits(torch.device("cuda", index)):
            yield Finding("devices", f"{limit.what} on cuda:{index}", "lack", limit.lack, limit.cost, limit.remedy)
        yield _fp8(torch.device("cuda", index))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            "torch is built without CUDA" if built is None else f"torch is built for CUDA {built}, but sees no device"
        )
        has_driver = Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi") is not None
        remedy = "pip install torch (the CUDA build)" if has_driver and built is None else ""
        meaning = "training runs on the CPU: fine for small models, slow above a billion parameters"
        yield Finding("devices", "gpu", "note", reason, meaning, remedy)
        yield _fp8(torch.device("cpu"))


def _fp8(device: "torch.device") -> Finding:
    from mftcoder.kernels.linear.fp8 import lack_of_fp8

    lack = lack_of_fp8(device)
    if lack is None:
        return Finding("devices", f"fp8 on {device}", "ok", "multiplies e4m3 (model.quantization: fp8, 4bit-fp8)")
    meaning = f"{lack}. With model.quantization: fp8 it computes the same numbers and saves memory, but no time"
    return Finding("devices", f"fp8 on {device}", "note", "emulated", meaning)


def _attention() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    from mftcoder.kernels import attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding(
        "attention", "packed rows", "ok", ", then ".join(attention.candidates(device)) + " (auto, best first)"
    )
    if device.type == "cuda":
        meaning = "float32, other head sizes and models that drop out attention weights take the next one: slower, the same results"
        yield Finding("attention", "varlen", "ok", "bfloat16, heads of 8, 16, ... 256 numbers", meaning)
        yield from _newer_attention(device)


def _newer_attention(device: "torch.device") -> Iterator[Finding]:
    """The best FlashAttention newer than 2 that is installed; if there is none, each that could be."""
    from mftcoder.kernels import flash

    lacks = [(version, flash.lack_of(version)) for version in flash.versions_for(device)]
    installed = [version for version, lack in lacks if lack is None]
    if installed:
        value = "installed; a run takes it where it gives what FlashAttention 2 gives on the model's heads"
        yield Finding("attention", str(installed[0]), "ok", value)
        return
    for version, lack in lacks:
        yield Finding("attention", str(version), "note", str(lack), flash.COST, version.remedy)


def _sandbox() -> Iterator[Finding]:
    try:
        with open_pool("auto", 1) as pool:
            level, covers = pool.level, ", ".join(pool.covers)
    except ExecutionError as error:
        meaning = "`mft evaluate` cannot run programs here"
        yield Finding("sandbox", "level", "lack", "none", meaning, " ".join(error.problems))
        return
    if level != "process":
        yield Finding("sandbox", "level", "ok", f"{level}: {covers}")
        return
    meaning = (
        "programs under test share the network and the file system with you; score only code you would run yourself"
    )
    yield Finding("sandbox", "level", "lack", f"process: {covers}", meaning, _why_no_namespaces())


def _why_no_namespaces() -> str:
    try:
        Pool("namespaces", 1).close()
    except ExecutionError as error:
        return " ".join(error.problems)
    return ""


def _toolchains() -> Iterator[Finding]:
    for language, command, arguments, remedy in TOOLCHAINS:
        path = shutil.which(command)
        if path is None:
            meaning = f"answers in {language} cannot be run"
            yield Finding("toolchains", language, "note", f"{command} not found", meaning, remedy)
        else:
            yield Finding("toolchains", language, "ok", _first_line([path, *arguments]))


TOOLCHAINS = (
    ("python", sys.executable, ("--version",), ""),
    ("c++", "g++", ("--version",), "apt install g++, or: xcode-select --install"),
    ("java", "javac", ("-version",), "apt install default-jdk, or: brew install openjdk"),
    ("javascript", "node", ("--version",), "apt install nodejs, or: brew install node"),
    ("go", "go", ("version",), "apt install golang-go, or: brew install go"),
    ("rust", "rustc", ("--version",), "apt install rustc cargo, or: https://rustup.rs"),
)


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer ({type(error).__name__})"
    return ((done.stdout or done.stderr).strip() or "no version reported").splitlines()[0]


def _room() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("room", "memory", "ok", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
    for name, folder in (("disk here", Path()), ("disk of the cache", download.models_cache().parent)):
        free = shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.exists())).free / GIB
        value = f"{free:.1f} GiB free ({folder.resolve()})"
        if free >= 5:
            yield Finding("room", name, "ok", value)
        else:
            remedy = "set MFTCODER_CACHE to a larger disk" if name != "disk here" else "choose another output_dir"
            yield Finding("room", name, "lack", value, "a checkpoint or a converted model may not fit", remedy)


def _network() -> Iterator[Finding]:
    if hub.is_reachable(timeout_seconds=2.0):
        yield Finding("network", "Hub", "ok", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    else:
        meaning = (
            "models, data sets and benchmarks come from local folders only; `mft demo` fetches its model from PyPI"
        )
        remedy = "give local paths and --data-dir, or set HF_ENDPOINT to a mirror"
        yield Finding("network", "Hub", "note", "does not answer", meaning, remedy)


EXAMINATIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "software": _software,
    "devices": _devices,
    "attention": _attention,
    "sandbox": _sandbox,
    "toolchains": _toolchains,
    "room": _room,
    "network": _network,
}


def _print(findings: list[Finding]) -> None:
    signs = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "lack": "[red]lack[/]"}
    table = Table("", "", "", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    area = ""
    for finding in findings:
        first = "" if finding.area == area else finding.area
        table.add_row(first, finding.name, signs[finding.state], escape(finding.value))
        area = finding.area
        if finding.meaning:
            advice = f"{finding.meaning}. {finding.remedy}".rstrip(". ")
            table.add_row("", "", "", f"[dim]{escape(advice)}[/]")
    Console().print(table)
