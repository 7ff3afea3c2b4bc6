"""Use FlashAttention 3 or 4 instead of 2 in torch's variable-length attention, after a trial.

torch contains FlashAttention 2. Newer versions are separate packages, which torch runs once they are activated. A version is kept only
if its results equal those of FlashAttention 2 on packed samples with the model's own heads, forward and backward. Activation also
replaces the kernels of torch's other attention on CUDA, where they refuse dropout, so only a model with `varlen` attention may
activate them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)

from mftcoder.errors import reason
from mftcoder.kernels.attention import SampleLayout, varlen_attention

LENGTHS = (129, 1, 200, 54)  # of the trial's samples: longer and shorter than a block of the kernels
SHORT_WINDOW = 64  # positions: shorter than some samples
APART = 0.02  # largest relative distance of a result from FlashAttention 2's; rounding to bfloat16 gives 0.004
COST = (
    "attention runs FlashAttention 2: the same results. It took 14% of a full step (1.5B, 8 x 4,096, one H200), and version 3 takes "
    "about half of its time by its paper (arXiv 2407.08608)"
)


@dataclass(frozen=True)
class FlashVersion:
    """One of the versions that torch can activate."""

    number: int
    majors: tuple[int, ...]  # major compute capabilities with kernels
    module: str  # the module that torch imports
    remedy: str

    @property
    def name(self) -> str:
        """Its name in torch."""
        return f"FA{self.number}"

    def __str__(self) -> str:
        return f"FlashAttention {self.number}"


VERSIONS = (
    FlashVersion(3, (9,), "flash_attn_interface", "build the folder `hopper` of github.com/Dao-AILab/flash-attention"),
    FlashVersion(4, (9, 10), "flash_attn.cute.interface", "pip install --pre flash-attn-4"),
)
"""The versions to try, best first."""


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model's layers."""

    queries: int
    keys: int
    size: int
    value_size: int
    window: int | None = None  # positions that layers with a sliding window look back

    @classmethod
    def of(cls, model_config: Any) -> "Heads":
        config = model_config.get_text_config()
        queries = int(config.num_attention_heads)
        size, value_size = head_sizes(config)
        groups = int(getattr(config, "num_key_value_heads", None) or queries)
        return cls(queries, groups, size, value_size, getattr(config, "sliding_window", None) or None)


def head_sizes(text_config: Any) -> tuple[int, int]:
    """The sizes of a query and of a value."""
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    value_size = getattr(text_config, "v_head_dim", None) or size
    if hasattr(text_config, "qk_nope_head_dim"):
        size = text_config.qk_nope_head_dim + text_config.qk_rope_head_dim
    return int(size), int(value_size)


def versions_for(device: torch.device) -> list[FlashVersion]:
    """The versions newer than 2 that this GPU can run, installed or not."""
    if device.type != "cuda" or torch.version.hip:
        return []
    major, _ = torch.cuda.get_device_capability(device)
    return [version for version in VERSIONS if major in version.majors]


def lack_of(version: FlashVersion) -> str | None:
    """What is missing for this version; None if nothing is."""
    if version.name not in list_flash_attention_impls():
        return f"torch {torch.__version__} does not know it"
    try:
        found = importlib.util.find_spec(version.module) is not None
    except ModuleNotFoundError:
        found = False
    except Exception as error:  # from the parent packages, which are imported to find the module
        return f"{version.module} cannot be imported: {reason(error)}"
    return None if found else f"{version.module} is not installed"


def use_newest(device: torch.device, heads: Heads, say: Callable[[str], None]) -> FlashVersion | None:
    """Activate the best installed version that passes the trial; None for FlashAttention 2. `say` gets the failures."""
    use_torchs_own()
    installed = [version for version in versions_for(device) if lack_of(version) is None]
    expected = attend_on_trial(device, heads) if installed else {}
    for version in installed:
        problem = _problem(version, device, heads, expected)
        if problem is None:
            return version
        use_torchs_own()
        say(f"{version} is installed but not used: {problem}. {COST}")
    return None


def use_torchs_own() -> None:
    """Go back to FlashAttention 2."""
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def _problem(version: FlashVersion, device: torch.device, heads: Heads, expected: dict[str, Tensor]) -> str | None:
    """Activate the version and try it; returns what goes wrong, whatever the package, its compiler or the driver raise."""
    try:
        activate_flash_attention_impl(version.name)
        found = attend_on_trial(device, heads)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {reason(error)}"
    for what, right in expected.items():
        apart = ((found[what].float() - right.float()).norm() / right.float().norm()).item()
        if not apart <= APART:
            return f"its {what} has a relative distance of {apart:.2g} from that of FlashAttention 2"
    return None


def attend_on_trial(device: torch.device, heads: Heads) -> dict[str, Tensor]:
    """Attention over a few packed samples, and its gradients, computed as in training; by their names."""
    if heads.window is None:
        return _attend(device, heads, None)
    narrow = min(heads.window, SHORT_WINDOW)
    inside = _attend(device, heads, narrow)
    return _attend(device, heads, None) | {f"{what} inside a window": tensor for what, tensor in inside.items()}


def _attend(device: torch.device, heads: Heads, window: int | None) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    total, size = sum(LENGTHS), heads.size
    shapes = (
        (heads.queries, size),
        (heads.keys, size),
        (heads.keys, heads.value_size),
        (heads.queries, heads.value_size),
    )
    *inputs, outer = (
        torch.randn(1, count, total, wide, generator=draw).bfloat16().to(device) for count, wide in shapes
    )
    inputs = [tensor.requires_grad_() for tensor in inputs]
    keywords = SampleLayout((LENGTHS,)).keywords("varlen", device)
    with torch.enable_grad():
        attended, _ = varlen_attention(nn.Identity(), *inputs, None, sliding_window=window, **keywords)
        gradients = torch.autograd.grad(attended, inputs, outer.transpose(1, 2))
    names = (f"gradient of the {what}" for what in ("queries", "keys", "values"))
    return {"result": attended.detach(), **dict(zip(names, gradients, strict=True))}
