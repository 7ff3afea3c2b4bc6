"""On a GPU: varlen attention keeps samples apart, and a compiled step equals the plain one."""

import numpy as np
import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, LlamaConfig, LlamaForCausalLM

from mftcoder.kernels.attention import register
from mftcoder.training.isolation import verify_isolation
from mftcoder.training.language_model import LanguageModel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def model(implementation: str) -> LanguageModel:
    register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=implementation, use_cache=False,
    )  # fmt: skip
    module = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    return LanguageModel(module, attn_implementation=implementation, num_tasks=2)


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [100, 28, 128, 200, 56]
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 512, (2, 256)))
    positions = torch.cat([torch.arange(n) for n in lengths]).reshape(2, 256)
    return ids, positions


@pytest.mark.parametrize("implementation", ["varlen", "segments", "sdpa"])
def test_every_attention_keeps_packed_samples_apart(implementation: str) -> None:
    verify_isolation(model(implementation), (torch.arange(5, 105), torch.arange(7, 150)))


def test_values_smaller_than_queries_go_through_varlen_and_back() -> None:
    register()
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        kv_lora_rank=64, q_lora_rank=None, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, first_k_dense_replace=2,
        attn_implementation="varlen", use_cache=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    module = DeepseekV2ForCausalLM(config).to("cuda", torch.bfloat16)
    verify_isolation(
        LanguageModel(module, attn_implementation="varlen", num_tasks=1), (torch.arange(5, 105), torch.arange(7, 150))
    )
    ids, positions = packed()
    gradients = []
    for implementation in ("varlen", "segments"):
        model = LanguageModel(module, attn_implementation=implementation, num_tasks=1)
        model.set_attention(implementation)
        module.zero_grad()
        model.hidden_states(ids, positions).float().square().mean().backward()
        gradients.append(module.model.layers[0].self_attn.kv_b_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05 * gradients[1].abs().max().item())


def test_varlen_equals_the_loop_over_segments() -> None:
    ids, positions = packed()
    with torch.no_grad():
        a = model("varlen").hidden_states(ids, positions)
        b = model("segments").hidden_states(ids, positions)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_compiled_layers_give_the_same_hidden_states() -> None:
    ids, positions = packed()
    plain, compiled = model("varlen"), model("varlen")
    compiled.compile_layers()
    with torch.no_grad():
        torch.testing.assert_close(
            compiled.hidden_states(ids, positions), plain.hidden_states(ids, positions), rtol=0.05, atol=0.05
        )
