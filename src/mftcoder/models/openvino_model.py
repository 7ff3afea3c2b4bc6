"""A model that OpenVINO has compiled for this CPU: rows of any lengths in one forward pass over a paged key-value cache, all in float32.

transformers' own forward is traced, with an attention that stands for OpenVINO's paged attention. So any family runs whose attention takes
nothing unusual, and what is unusual is refused. Weights of 16 bits stay in 16 bits. The compiled model is compared with the model itself
before it is used.

The cache is blocks of BLOCK tokens; each row names its blocks. Memory that no block was written to is not taken.
"""

# ruff: noqa: E402
import sys

# OpenVINO tells its makers of each import and conversion, unless this package is missing (its own stub takes its place then).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch import ConversionExtension, patch_model
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.op import Constant, _PagedAttentionExtension
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils import logging as transformers_logging

from mftcoder.errors import GenerationError, ModelError, reason
from mftcoder.kernels.attention import refuse_unusual

BLOCK = 32
"""Tokens of a block: the size that OpenVINO's CPU kernel has."""
ATTENTION = "openvino"
_TRACED = 7  # tokens
_OF_TEXT = 8  # inputs before those of the cache
_CHANGING_ROPE = ("dynamic", "longrope")  # rotations that depend on the length of the text, which a trace fixes
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PROBE = (2 * BLOCK + 5, 9)  # tokens of a text that both models read, in two parts
_LEAST_AGREEMENT = 0.99  # correlation of logits; rounding to bfloat16 leaves 0.999, another attention less than 0.9
_PLACES = ("Couldn't get TorchScript", "Exception", "Check '", "FrontEnd API failed", "Summary:")  # in its errors
_MOST_DIFFERENCE = 1e-3  # of logits, beside their deviation; rounding leaves 1e-5


class OpenVinoModel:
    """A causal language model. `device` and `config` are as in transformers; `block` is the number of tokens of a block."""

    device = torch.device("cpu")
    block = BLOCK

    def __init__(self, model: Any):
        """Compile a transformers model on the CPU. It cannot be used any more. ModelError if OpenVINO cannot run it."""
        problem = unsupported(model.config.get_text_config())
        if problem:
            raise ModelError(f"OpenVINO: {problem}")
        self.config = model.config
        probe = _Probe.of(model)
        try:
            self._compiled = _compile(_convert(model))
            probe.check(self, type(model).__name__)
        except ModelError:
            raise
        except Exception as error:  # any code may be traced, and what is compiled may not run
            raise ModelError(f"OpenVINO cannot run {type(model).__name__}: {_without_advice(error)}") from error

    def cache(self, blocks: int) -> "PagedCache":
        """An empty key-value cache of so many blocks."""
        return PagedCache(self._compiled, blocks)


class PagedCache:
    """The key-value cache of rows, which name their blocks, and the forward pass over it."""

    def __init__(self, compiled: Any, blocks: int):
        self.blocks = blocks
        self._request = compiled.create_infer_request()
        self._tensors = []  # they own the memory
        for index, place in enumerate(compiled.inputs[_OF_TEXT:], _OF_TEXT):
            _, heads, size, width = (axis.get_length() if axis.is_static else -1 for axis in place.get_partial_shape())
            shape = (blocks, heads, size, width)
            memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(np.float32).itemsize)  # zeros, taken page by page
            self._tensors.append(np.frombuffer(memory, np.float32).reshape(shape))
            self._request.set_input_tensor(index, ov.Tensor(self._tensors[-1], shared_memory=True))

    def forward(self, texts: Sequence[Sequence[int]], past: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
        """Read each row's next tokens, and give the logits after its last one, float32 [rows, vocabulary], valid until the next call.

        `past` is the number of tokens that a row has in the cache, `tables` its blocks, with room for the new tokens.
        """
        ends = np.cumsum([len(text) for text in texts])
        totals = [before + len(text) for before, text in zip(past, texts, strict=True)]
        positions = [np.arange(before, total) for before, total in zip(past, totals, strict=True)]
        inputs = (
            np.concatenate([np.asarray(text, np.int64) for text in texts])[None],
            np.concatenate(positions).astype(np.int64)[None],
            np.asarray(past, np.int32),
            np.asarray([0, *ends], np.int32),
            np.concatenate([np.asarray(table, np.int32) for table in tables]),
            np.asarray([0, *np.cumsum([len(table) for table in tables])], np.int32),
            np.asarray(max(totals), np.int32),
            (ends - 1).astype(np.int64),
        )
        for index, values in enumerate(inputs):
            self._request.set_input_tensor(index, ov.Tensor(values))
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data)[0]


@dataclass(frozen=True)
class _Probe:
    """What the model itself says after the two parts of a text."""

    ids: tuple[int, ...]
    logits: Tensor  # [2, vocabulary]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> "_Probe":
        text = model.config.get_text_config()
        draw = torch.Generator().manual_seed(0)
        positions = getattr(text, "max_position_embeddings", None) or sum(_PROBE)
        ids = torch.randint(text.vocab_size, (1, min(sum(_PROBE), positions)), generator=draw)
        logits = model(input_ids=ids, use_cache=False).logits[0, [ids.shape[1] - 1 - _PROBE[1], -1]]
        if not logits.isfinite().all():
            name = model.config.name_or_path or type(model).__name__
            for weight, values in model.named_parameters():
                if not values.isfinite().all():  # no engine can run it
                    raise GenerationError(
                        f"{name}: {weight} is damaged: not all of it are finite numbers. Export or download it again"
                    )
            raise ModelError(f"OpenVINO: {name}: its logits are not finite numbers in {model.dtype}")
        return cls(tuple(ids[0].tolist()), logits.float())

    def check(self, compiled: OpenVinoModel, name: str) -> None:
        """ModelError if the compiled model says something else, or depends on more than the cache."""
        cache = compiled.cache(2 * (len(self.ids) // BLOCK + 1))
        blocks = list(range(cache.blocks))
        here, there = blocks[: cache.blocks // 2], blocks[cache.blocks // 2 :]
        first = len(self.ids) - _PROBE[1]
        before = cache.forward([self.ids[:first]], [0], [here])[0].clone()
        after = cache.forward([self.ids[first:]], [first], [here])[0].clone()
        whole = cache.forward([self.ids], [0], [there])[0]
        pairs = zip((before, after), self.logits, strict=True)
        agreement = min(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs)
        if not agreement >= _LEAST_AGREEMENT:  # NaN, too
            raise ModelError(f"OpenVINO: {name} says something else when it is compiled (correlation {agreement:.3f})")
        if not (after - whole).abs().max() <= _MOST_DIFFERENCE * whole.std():
            raise ModelError(
                f"OpenVINO: {name} reads a text in parts otherwise than as a whole: it is more than attention"
            )


def _without_advice(error: Exception) -> str:
    """What is wrong, in the first lines of an error that are no place in OpenVINO's code, and before its advice and its stack."""
    lines = takewhile(lambda line: not line.startswith(("Please check", "At:")), str(error).splitlines())
    said = [line for line in lines if line.strip() and not line.startswith(_PLACES)]
    return reason(RuntimeError("\n".join(said[:3]))) if said else reason(error)


def unsupported(config: Any) -> str:
    """Why a trace would not hold for all texts; empty if it does."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)]
    if changing := [kind for kind in kinds if kind in _CHANGING_ROPE]:
        return f"rotary positions of type {changing[0]} depend on the length of the text"
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        return "a mixture of experts chooses them while it runs"
    return ""


@torch.library.custom_op("mftcoder::paged_attention", mutates_args=())
def _paged_attention(
    query: Tensor,  # [tokens, H * D]
    key: Tensor,  # [tokens, G * D]
    value: Tensor,  # [tokens, G * Dv]
    key_cache: Tensor,  # [blocks, G, BLOCK, D]
    value_cache: Tensor,  # [blocks, G, BLOCK, Dv]
    past: Tensor,  # int32 [rows]
    begins: Tensor,  # int32 [rows + 1], of each row's new tokens
    blocks: Tensor,  # int32, those of all rows
    block_begins: Tensor,  # int32 [rows + 1], of each row's blocks
    longest: Tensor,  # int32, tokens of the longest row
    scaling: float,
    window: int,  # tokens that each token sees; 0: all before it
    groups: int,
    size: int,
    value_size: int,
) -> Tensor:
    """Stands for OpenVINO's operator while a model is traced; returns zeros [tokens, H * Dv]."""
    return query.new_zeros(query.shape[0], query.shape[1] // size * value_size)


@_paged_attention.register_fake
def _paged_attention_shape(query: Tensor, *others: Any) -> Tensor:
    size, value_size = others[-2:]
    return query.new_empty(query.shape[0], query.shape[1] // size * value_size)


def _traced_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, tokens, D]
    key: Tensor,  # [1, G, tokens, D]
    value: Tensor,  # [1, G, tokens, Dv]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged: "_PagedInputs | None" = None,
    **unusual: Any,
) -> tuple[Tensor, None]:
    refuse_unusual(unusual, attention_mask)
    if paged is None:
        raise ValueError(f"{type(module).__name__} does not pass its inputs on to its attention")
    heads, size, value_size = query.shape[1], query.shape[3], value.shape[3]
    flat = (states[0].transpose(0, 1).flatten(1) for states in (query, key, value))
    attended = torch.ops.mftcoder.paged_attention(
        *flat,
        *next(paged.caches),
        *paged.rows,
        float(size**-0.5 if scaling is None else scaling),
        int(sliding_window or 0),
        key.shape[1],
        size,
        value_size,
    )
    return attended.reshape(1, -1, heads, value_size), None


@dataclass
class _PagedInputs:
    rows: tuple[Tensor, ...]
    caches: Iterator[tuple[Tensor, Tensor]]  # of one layer after the other


class _Traced(nn.Module):
    """The model with the inputs of a paged forward pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past: Tensor,
        begins: Tensor,
        blocks: Tensor,
        block_begins: Tensor,
        longest: Tensor,
        last: Tensor,  # int64 [rows], the place of each row's last token
        caches: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        paged = _PagedInputs((past, begins, blocks, block_begins, longest), iter(caches))
        logits: Tensor = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=last, paged=paged
        ).logits
        if next(paged.caches, None) is not None:
            raise ValueError("not all of its layers are attention")
        return logits.float()


@torch.no_grad()
def _convert(model: Any) -> Any:
    """The model as OpenVINO's graph."""
    config = model.config.get_text_config()
    AttentionInterface.register(ATTENTION, _traced_attention)
    model.set_attn_implementation(ATTENTION)
    if model.dtype in (torch.bfloat16, torch.float16):
        getattr(patch_model, "__make_16bit_traceable")(model)
    rows = [torch.tensor(values, dtype=torch.int32) for values in ([0], [0, _TRACED], [0], [0, 1], _TRACED)]
    cache = torch.zeros(1, 1, BLOCK, 1)  # the operator has the real shapes
    positions = torch.arange(_TRACED)[None]
    names = ("past", "begins", "blocks", "block_begins", "longest")
    example = {
        "input_ids": positions,
        "position_ids": positions,
        **dict(zip(names, rows, strict=True)),
        "last": torch.tensor([_TRACED - 1]),
        "caches": [(cache, cache.clone()) for _ in range(config.num_hidden_layers)],
    }
    with _quietly():
        decoder = TorchScriptPythonDecoder(
            _Traced(model).eval(), example_input=example, trace_kwargs={"check_trace": False}
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        frontend.add_extension(ConversionExtension("mftcoder::paged_attention", _to_openvino))
        return frontend.convert(frontend.load(decoder))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of the tracer, which reads every attribute and makes values constant: the result is compared with the model."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _to_openvino(context: Any) -> list[Any]:
    """OpenVINO's operator for `_paged_attention`. Its further inputs turn parts of it off (openvino 2026.4)."""
    states = [context.get_input(index) for index in range(10)]
    scaling, window, groups, size, value_size = (context.get_values_from_const_input(index) for index in range(10, 15))
    none = {kind: _constant(np.zeros(0, kind)) for kind in (np.int32, np.float32, np.uint8)}
    off = _constant(np.array(0, np.int32))
    node = _PagedAttentionExtension(
        [
            *states[:9],
            _constant(np.array(scaling, np.float32)),
            _constant(np.array(window, np.int32)),
            none[np.float32],  # slopes of ALiBi
            states[9],
            *[none[np.int32]] * 3,  # scores of tokens; blocks that are rotated
            *[none[np.float32]] * 2,
            *[off] * 2,  # sparse attention
            _constant(np.zeros((0, 0, 0, 0), np.float32)),  # sinks
            off,  # eviction of blocks
            *[none[np.int32]] * 4,
            none[np.uint8],
            none[np.int32],
        ]
    )
    about = node.get_rt_info()
    about["num_k_heads"] = about["num_v_heads"] = groups
    about["k_head_size"], about["v_head_size"] = size, value_size
    return [node.output(0)]


def _constant(values: np.ndarray) -> Any:
    return Constant(values).output(0)


def _compile(graph: Any) -> Any:
    """The graph for as many threads as torch has, without any rounding of weights, states or products."""
    for place in graph.inputs[_OF_TEXT:]:
        place.get_node().set_partial_shape(ov.PartialShape([-1, -1, -1, -1]))
        place.get_node().set_element_type(ov.Type.dynamic)
    graph.validate_nodes_and_infer_types()
    return ov.Core().compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        },
    )
