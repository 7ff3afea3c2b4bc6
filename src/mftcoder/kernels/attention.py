"""Attention inside packed rows: each sample sees only itself, without a mask. The result equals attention over each sample alone.

Two implementations are registered with transformers' AttentionInterface: `segments` (any device: a loop over samples with causal
SDPA, on a CPU two to three times faster than a masked SDPA) and `varlen` (CUDA: torch's FlashAttention over cumulative lengths).
The sample boundaries are passed as keyword arguments through the model's forward. If a model does not pass them on, an error is
raised here, and samples never see each other. Both implementations also work for rows of which each rank of a group holds a slice
(`context_group`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from transformers import AttentionInterface

from mftcoder.kernels.context_group import ContextGroup

_LONGEST_BY_PRODUCTS = 512
# From torch 2.12, its development versions too; earlier kernels accept grouped heads without the argument.
_HAS_ENABLE_GQA = torch.__version__ >= TorchVersion("2.12.dev0")


@dataclass(frozen=True)
class SampleLayout:
    """The lengths of the samples in a batch of rows, computed on the host so that the device never waits."""

    lengths: tuple[tuple[int, ...], ...]  # per row; each row's sum is L
    shared: tuple[int, ...] = ()
    """With one row only: how many first positions of the sample before it each sample sees as its own first ones. () is none."""

    @staticmethod
    def of(position_ids: Tensor) -> "SampleLayout":
        """From positions on the CPU [B, L]: position 0 starts a sample. `[[0, 1, 2, 0, 1]] -> lengths ((3, 2),)`."""
        rows = []
        for row in position_ids:
            starts = (row == 0).nonzero().flatten().tolist()
            if not starts or starts[0] != 0:
                raise ValueError("a row must begin with position 0")
            ends = [*starts[1:], row.numel()]
            rows.append(tuple(end - start for start, end in zip(starts, ends, strict=True)))
        return SampleLayout(tuple(rows))

    def keywords(self, implementation: str, device: torch.device, *, compiled: bool = False) -> dict[str, Any]:
        """Keyword arguments of the model's forward for `implementation`; empty where position_ids are enough.

        `compiled` gives a tensor, so that a compiled layer does not depend on the values.
        """
        if implementation == "segments" and compiled:
            return {"segment_bounds": torch.tensor([0, *itertools.accumulate(itertools.chain(*self.lengths))])}
        if implementation == "segments":
            return {"segment_lengths": self.lengths, **({"segment_shared": self.shared} if self.shared else {})}
        if self.shared:
            raise ValueError(f"attention '{implementation}' cannot run samples that share their first positions")
        if implementation in ("varlen", "flash_attention_2"):
            return self._cumulative(device)
        return {}

    def _cumulative(self, device: torch.device) -> dict[str, Any]:
        """The batch as one long row; the number of entries is rounded up so that compiled layers see few shapes."""
        flat = [length for row in self.lengths for length in row]
        total = sum(flat)
        # The kernel starts blocks for this length. Rounding up to a power of two keeps the number of compiled graphs small.
        longest = min(total, 1 << (max(flat) - 1).bit_length())
        ends = torch.tensor(flat, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        bounds = F.pad(ends, (1, (-len(flat)) % 64), value=total)
        bounds[0] = 0
        if device.type == "cuda":
            bounds = bounds.pin_memory().to(device, non_blocking=True)
        return {
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def _over_slices(attend: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    """`attend` for rows of which this rank holds a slice: it gets whole rows and a part of the heads."""

    @functools.wraps(attend)
    def attention(
        module: nn.Module,
        query: Tensor,  # [B, H, l, D] of this rank's slice
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        context_group: ContextGroup | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, None]:
        if context_group is None:
            return attend(module, query, key, value, attention_mask, **keywords)
        if query.shape[1] % context_group.size:
            raise ValueError(
                f"{query.shape[1]} attention heads cannot be divided evenly among {context_group.size} ranks"
            )
        repeated = (context_group.repeated(heads) for heads in (key, value))
        rows = context_group.exchange(query, *repeated)  # [B, H / size, L, D]
        attended, _ = attend(module, *rows, attention_mask, **keywords)
        return context_group.exchange(attended)[0], None

    return attention


@_over_slices
def segments_attention(
    module: nn.Module,
    query: Tensor,  # [B, H, L, D]
    key: Tensor,  # [B, G, L, D], G key-value heads
    value: Tensor,  # [B, G, L, Dv]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_lengths: tuple[tuple[int, ...], ...] | None = None,
    segment_shared: tuple[int, ...] = (),
    segment_bounds: Tensor | None = None,
    sliding_window: int | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sample alone; returns [B, L, H, Dv]. In a compiled layer one row, cut at segment_bounds [S + 1]."""
    refuse_unusual(unsupported, attention_mask)
    if segment_bounds is not None:
        if dropout:
            raise ValueError("compiled layers have no attention dropout on this device: set train.torch_compile: false")
        return _segments(query, key, value, segment_bounds, scaling, sliding_window), None
    if segment_lengths is None:
        raise ValueError(f"{type(module).__name__} does not pass segment_lengths to its attention")
    rows = []
    for row, lengths in enumerate(segment_lengths):
        queries, keys, values = (x[row : row + 1].split(lengths, dim=2) for x in (query, key, value))
        if segment_shared:
            keys, values = (_after_shared(parts, segment_shared) for parts in (keys, values))
        parts = [
            _causal(q, k, v, scaling, dropout, sliding_window) for q, k, v in zip(queries, keys, values, strict=True)
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows, dim=0).transpose(1, 2).contiguous(), None


def _after_shared(parts: Sequence[Tensor], shared: Sequence[int]) -> list[Tensor]:
    """Each part [1, G, T, D] after the first positions that it shares with the part before it."""
    return [
        torch.cat([parts[at - 1][:, :, :count], part], dim=2) if count else part
        for at, (part, count) in enumerate(zip(parts, shared, strict=True))
    ]


@torch.library.custom_op("mftcoder::segments_attention", mutates_args=())
def _segments(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """One row as an operator that a compiler does not trace, so that samples do not matter. Returns [1, L, H, Dv]."""
    lengths = (tuple(bounds.diff().tolist()),)
    return segments_attention(
        nn.Identity(), query, key, value, None, scaling=scaling, segment_lengths=lengths, sliding_window=sliding_window
    )[0]


@_segments.register_fake
def _segments_shape(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    batch, heads, length, _size = query.shape
    return query.new_empty(batch, length, heads, value.shape[3])


@torch.library.custom_op("mftcoder::segments_attention_backward", mutates_args=())
def _segments_backward(
    outer: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, sample by sample. It computes attention again, because only the inputs were saved."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
    for start, end in itertools.pairwise(bounds.tolist()):
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        parts = _attention_gradients(q, k, v, outer[:, start:end].transpose(1, 2), scale, sliding_window)
        for whole, part in zip(found, parts, strict=True):
            whole[:, :, start:end] = part
    return found[0], found[1], found[2]


def _attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, outer: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of softmax(scale q k^T) v over one sample: dS = P (dP - sum(P dP)); float32. outer [1, H, T, Dv]."""
    heads, groups, length = q.shape[1], k.shape[1], q.shape[2]
    q, outer = (x[0].float().unflatten(0, (groups, heads // groups)) for x in (q, outer))  # [G, H / G, T, D]
    k, v = (x[0].float()[:, None] for x in (k, v))  # the query heads of a group share its keys
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    p = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -math.inf).softmax(-1)
    dp = outer @ v.transpose(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dv = (p.transpose(2, 3) @ outer).sum(1)
    return (ds @ k).flatten(0, 1)[None], (ds.transpose(2, 3) @ q).sum(1)[None], dv[None]


@_segments_backward.register_fake
def _segments_backward_shapes(outer: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:3])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scaling, ctx.sliding_window = inputs
    ctx.save_for_backward(*tensors)


def _segments_gradients(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    return (*_segments_backward(outer, *ctx.saved_tensors, ctx.scaling, ctx.sliding_window), None, None, None)


_segments.register_autograd(_segments_gradients, setup_context=_keep_inputs)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float, sliding_window: int | None
) -> Tensor:
    """SDPA over one sample [1, H, T, D], with a band mask if the sample is longer than the window.

    The queries may be those of the last positions only.
    """
    length, before = k.shape[2], k.shape[2] - q.shape[2]
    if _products_are_faster(k, dropout) and (sliding_window is None or length <= sliding_window):
        return _causal_by_products(q, k, v, scaling)
    grouped = q.shape[1] != k.shape[1]
    if not before and (sliding_window is None or length <= sliding_window):
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
    band = (ones.tril() if sliding_window is None else ones.tril() & ones.triu(1 - sliding_window))[before:]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band, dropout_p=dropout, scale=scaling, enable_gqa=grouped)


def _products_are_faster(k: Tensor, dropout: float) -> bool:
    """True on a CPU in bfloat16 up to 512 positions, where torch's fused attention takes two to three times as long."""
    return k.device.type == "cpu" and k.dtype == torch.bfloat16 and k.shape[2] <= _LONGEST_BY_PRODUCTS and not dropout


def _causal_by_products(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """softmax(q k^T) v of one sample [1, H, T, Dv]: a product for each key-value head, the softmax in float32."""
    _, heads, length, size = q.shape
    groups, seen = k.shape[1:3]
    rows = q.reshape(groups, heads // groups * length, size)  # the query heads of a group share its keys
    scores = torch.matmul(rows, k[0].transpose(1, 2)).view(heads, length, seen)
    scale = size**-0.5 if scaling is None else scaling
    bias = _causal_bias()[seen - length : seen, :seen]
    weights = torch.softmax(torch.add(bias, scores, alpha=scale), dim=-1).to(q.dtype)
    return torch.matmul(weights.view(groups, -1, seen), v[0]).view(1, heads, length, v.shape[3])


@functools.cache
def _causal_bias() -> Tensor:
    """0 up to the diagonal, -inf beyond."""
    return torch.full((_LONGEST_BY_PRODUCTS, _LONGEST_BY_PRODUCTS), -math.inf).triu(1)


@_over_slices
def varlen_attention(
    module: nn.Module,
    query: Tensor,  # [B, H, L, D]
    key: Tensor,  # [B, G, L, D]
    value: Tensor,  # [B, G, L, Dv]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """The same by torch's variable-length FlashAttention; returns [B, L, H, Dv]. ValueError for unsupported inputs."""
    # It imports torch's compiler: two seconds that other devices need not wait.
    from torch.nn.attention.varlen import varlen_attn

    refuse_unusual(unsupported, attention_mask)
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(f"{type(module).__name__} does not pass cu_seq_lens_q to its attention")
    problem = varlen_problem(query.dtype, query.shape[3], value.shape[3], dropout, query.device)
    if problem:
        raise ValueError(problem)
    batch, heads, length, size = query.shape
    groups, value_size = key.shape[1], value.shape[3]
    scaling = size**-0.5 if scaling is None else scaling
    value = F.pad(value, (0, size - value_size))  # the kernel needs one head size
    grouped: dict[str, Any] = {"enable_gqa": True} if _HAS_ENABLE_GQA and groups != heads else {}
    q, k, v = (x.transpose(1, 2).reshape(batch * length, x.shape[1], size) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window, **grouped
    )
    assert isinstance(out, Tensor)
    return out.view(batch, length, heads, size)[..., :value_size], None


def varlen_problem(dtype: torch.dtype, size: int, value_size: int, dropout: float, device: torch.device) -> str | None:
    """Why FlashAttention does not support heads of this dtype and size on this device; None if it does."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "varlen attention needs a GPU of compute capability 8.0 or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"varlen attention needs bfloat16, not {str(dtype).removeprefix('torch.')}"
    if size % 8 or size > 256 or value_size > size:
        return f"varlen attention needs heads of 8, 16, ... 256 numbers, not of {size} with values of {value_size}"
    return f"varlen attention has no dropout, but this model trains with {dropout:g}" if dropout else None


def refuse_unusual(unsupported: dict[str, Any], attention_mask: Tensor | None) -> None:
    """ValueError for arguments that would change the result but are not supported."""
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask")
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if unsupported.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}")


def register() -> None:
    """Register `attn_implementation="segments"` and `"varlen"` with transformers; it may be called again."""
    AttentionInterface.register("segments", segments_attention)
    AttentionInterface.register("varlen", varlen_attention)


def candidates(device: torch.device, *, slices: bool = False) -> tuple[str, ...]:
    """The implementations that `auto` tries on this device, best first; each is verified on the model before use.

    `slices` gives only those that support slices of rows.
    """
    packed = ("varlen", "segments") if device.type == "cuda" else ("segments",)
    return packed if slices else (*packed, "sdpa", "eager")
