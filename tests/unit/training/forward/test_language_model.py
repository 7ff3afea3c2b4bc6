"""Options of a run that do not change its results."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mftcoder.config.schema import AdapterConfig
from mftcoder.data.batches.loader import PackedBatch
from mftcoder.kernels.attention import register
from mftcoder.models.gpu_memory.recompute import Recomputation, recompute_layers
from mftcoder.models.layers.adapters import attach, trainable_parameters
from mftcoder.training.forward.language_model import LanguageModel

register()


def gradients(folder: Path, *, recompute: bool) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="segments", dtype=torch.float32)
    wrapped = LanguageModel(model.train(), attn_implementation="segments", num_tasks=1)
    recompute_layers(wrapped.decoder_layers(), Recomputation(whole=float(recompute)))
    ids, positions = torch.arange(24).reshape(2, 12) + 5, torch.cat([torch.arange(5), torch.arange(7)]).repeat(2, 1)
    wrapped.hidden_states(ids, positions).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_recomputed_activations_give_the_same_gradients(tiny_llama_dir: Path) -> None:
    torch.testing.assert_close(gradients(tiny_llama_dir, recompute=True), gradients(tiny_llama_dir, recompute=False))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_train_beside_lora_weights_get_the_gradients_of_full_training(tied: bool) -> None:
    """Of the input side and of the output side, and none while the LoRA weights are off."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    plain = LlamaForCausalLM(config)
    ids = torch.arange(24).reshape(2, 12) % 50
    batch = PackedBatch(
        ids, ids + 1, torch.arange(12).repeat(2, 1), torch.zeros_like(ids), torch.tensor([[0, 0], [0, 1]])
    )
    found = []
    for adapter in (AdapterConfig(type="full"), AdapterConfig(train_embeddings=True)):
        model = LanguageModel(attach(copy.deepcopy(plain), adapter), attn_implementation="sdpa", num_tasks=1)
        model.set_attention("segments")
        losses = model.losses(batch, torch.ones(ids.shape))
        losses.objective.backward()
        gradients = {
            "embed" in name: weight.grad
            for name, weight in trainable_parameters(model.module)
            if "embed" in name or "head" in name
        }
        found.append((losses.value, gradients))
    torch.testing.assert_close(found[0], found[1])
    with model.module.disable_adapter(), torch.no_grad():
        model.head.weight.zero_()
    assert not model.causal_lm.get_output_embeddings().original_module.weight.any()
