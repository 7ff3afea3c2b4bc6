"""Options of a run that do not change its results."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from mftcoder.kernels.attention import register
from mftcoder.models.gpu_memory.recompute import Recomputation, recompute_layers
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
