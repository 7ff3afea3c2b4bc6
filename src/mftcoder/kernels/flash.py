"""FlashAttention 3 and 4 in place of 2, behind torch's own variable-length attention.

Goes in: a GPU and the heads of a model. Comes out: the version that attends from then on in this process. torch brings
FlashAttention 2; newer versions are packages of their own, which torch runs once they are activated. One is kept only if it gives what
FlashAttention 2 gives on packed samples with the model's own heads, forward and backward. Activating replaces the kernels behind
torch's other attention on CUDA too, where they refuse dropout: only a model that attends with `varlen` may ask for it.
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

from mftcoder.kernels.attention import SampleLayout, varlen_attention

LENGTHS = (129, 1, 200, 54)  # of the trial's samples: more and less than a block of the kernels
SHORT_WINDOW = 64  # positions: shorter than some of them
APART = (
    0.02  # largest distance of a result from FlashAttention 2's, as a share of its size; rounding to bfloat16 is 0.004
)
COST = (
    "attention runs FlashAttention 2: the same results. It took 14% of a full step (1.5B, 8 x 4,096, one H200), and version 3 takes "
    "about half of its time by its paper (arXiv 2407.08608)"
)


@dataclass(frozen=True)
class FlashVersion:
    """One of the versions that torch can activate."""

    number: int
    majors: tuple[int, ...]  # compute capabilities that it has kernels for
    module: str  # where torch looks for them
    remedy: str

    @property
    def name(self) -> str:
        """As torch calls it."""
        return f"FA{self.number}"

    def __str__(self) -> str:
        return f"FlashAttention {self.number}"


VERSIONS = (
    FlashVersion(3, (9,), "flash_attn_interface", "build the folder `hopper` of github.com/Dao-AILab/flash-attention"),
    FlashVersion(4, (9, 10), "flash_attn.cute.interface", "pip install --pre flash-attn-4"),
)
"""The ones to try, best first on a GPU that both are for."""


@dataclass(frozen=True)
class Heads:
    """What attention is asked for by a model's layers."""

    queries: int
    keys: int
    size: int
    value_size: int
    window: int | None = None  # positions that layers with a sliding window look back

    @classmethod
    def of(cls, model_config: Any) -> "Heads":
        """From a transformers config."""
        config = model_config.get_text_config()
        queries = int(config.num_attention_heads)
        size, value_size = head_sizes(config)
        groups = int(getattr(config, "num_key_value_heads", None) or queries)
        return cls(queries, groups, size, value_size, getattr(config, "sliding_window", None) or None)


def head_sizes(text_config: Any) -> tuple[int, int]:
    """Numbers of a query and of a value."""
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    value_size = getattr(text_config, "v_head_dim", None) or size
    if hasattr(text_config, "qk_nope_head_dim"):
        size = text_config.qk_nope_head_dim + text_config.qk_rope_head_dim
    return int(size), int(value_size)


def versions_for(device: torch.device) -> list[FlashVersion]:
    """Those newer than 2 that this GPU can run, installed or not."""
    if device.type != "cuda" or torch.version.hip:
        return []
    major, _ = torch.cuda.get_device_capability(device)
    return [version for version in VERSIONS if major in version.majors]


def lack_of(version: FlashVersion) -> str | None:
    """What is missing for this version, if something is."""
    if version.name not in list_flash_attention_impls():
        return f"torch {torch.__version__} does not know it"
    try:
        found = importlib.util.find_spec(version.module) is not None
    except ModuleNotFoundError:
        found = False
    except Exception as error:  # of the packages around the module, which are imported to find it
        return f"{version.module} cannot be imported: {_first_line(error)}"
    return None if found else f"{version.module} is not installed"


def use_newest(device: torch.device, heads: Heads, say: Callable[[str], None]) -> FlashVersion | None:
    """Activate the best version that is installed and proves itself; None for FlashAttention 2. `say` hears of each that did not."""
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
    """FlashAttention 2 again, whatever was activated."""
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def _problem(version: FlashVersion, device: torch.device, heads: Heads, expected: dict[str, Tensor]) -> str | None:
    """Activate the version and try it: what goes wrong, whatever its package, its compiler or the driver raise."""
    try:
        activate_flash_attention_impl(version.name)
        found = attend_on_trial(device, heads)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    for what, right in expected.items():
        apart = ((found[what].float() - right.float()).norm() / right.float().norm()).item()
        if not apart <= APART:
            return f"its {what} is {apart:.2g} of its size apart from that of FlashAttention 2"
    return None


def attend_on_trial(device: torch.device, heads: Heads) -> dict[str, Tensor]:
    """The result of attention over a few packed samples and its gradients, as training computes them; by what they are."""
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
