"""The count on shapes is what a real forward pass keeps."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.config.schema import AdapterConfig
from mftcoder.models.gpu_memory.activations import count_activations
from mftcoder.models.gpu_memory.recompute import decoder_layers
from mftcoder.models.layers.adapters import attach

ROWS, LENGTH, LAYERS = 2, 64, 3
HIDDEN, INNER, HEADS, GROUPS = 64, 176, 4, 2


def llama(device: str, dtype: torch.dtype = torch.float32) -> Any:
    config = LlamaConfig(
        vocab_size=100, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).train()


def kept_by_autograd(model: Any) -> int:
    """Bytes of the different storages that autograd's graph holds after a real forward pass, weights left out."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            held[storage] = tensor
        return tensor

    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = inner.base_model(input_ids=ids, position_ids=torch.arange(LENGTH)[None], use_cache=False)
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del output
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [None, AdapterConfig(lora_rank=4), AdapterConfig(lora_rank=4, lora_dropout=0.1)])
def test_without_recomputation_the_count_is_what_autograd_keeps(
    dtype: torch.dtype, adapter: AdapterConfig | None
) -> None:
    real, shapes = llama("cpu", dtype), llama("meta", dtype)
    if adapter:
        real = attach(real, adapter).train()
        with torch.device("meta"):
            shapes = attach(shapes, adapter).to(dtype)
    counted = count_activations(shapes, ROWS, LENGTH, compiled=False)
    assert counted.nothing_recomputed == pytest.approx(kept_by_autograd(real), rel=0.03)


def test_counting_collects_the_garbage_of_new_objects_only() -> None:
    """A collection of all that is imported takes some tenths of a second, and a count needs six."""
    model, generations = llama("meta"), set[int]()

    def note(phase: str, info: dict[str, int]) -> None:
        generations.add(info["generation"])

    gc.callbacks.append(note)
    try:
        count_activations(model, ROWS, LENGTH, compiled=False)
    finally:
        gc.callbacks.remove(note)
    assert 0 in generations and 2 not in generations and gc.isenabled()


def test_what_recomputation_keeps_follows_from_the_shapes() -> None:
    counted = count_activations(llama("meta"), ROWS, LENGTH, compiled=False)
    groups = HIDDEN * GROUPS // HEADS
    # input, q, attention, o and down; k, v; gate, up; logsumexp of each head
    selective = LAYERS * (5 * HIDDEN + 2 * groups + 2 * INNER + HEADS)
    whole = LAYERS * HIDDEN
    tokens_in_bytes = 4 * ROWS * LENGTH
    outside = 3 * HIDDEN + 2 * HIDDEN // HEADS  # last norm; rotary frequencies
    assert counted.selective / tokens_in_bytes == pytest.approx(selective, abs=outside)
    assert counted.all_recomputed / tokens_in_bytes == pytest.approx(whole, abs=outside)
    assert counted.all_recomputed < counted.selective < counted.nothing_recomputed


@pytest.mark.filterwarnings("default")  # the compiler imports and touches much that torch itself warns of
def test_compiled_layers_keep_what_the_compilers_partitioner_keeps() -> None:
    torch._dynamo.reset()
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    real = llama("cpu", torch.bfloat16)
    for layer in decoder_layers(real):
        layer.compile(backend="aot_eager_decomp_partition")
    counted = count_activations(llama("meta", torch.bfloat16), ROWS, LENGTH, compiled=True)
    assert counted.nothing_recomputed == pytest.approx(kept_by_autograd(real), rel=0.15)
    assert counted.nothing_recomputed < count_activations(llama("meta", torch.bfloat16), ROWS, LENGTH, compiled=False).nothing_recomputed  # fmt: skip
