"""Rotary embeddings that depend on the length: in a packed row, each sample is rotated as if it were alone."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mftcoder.kernels.attention import SampleLayout, register
from mftcoder.kernels.rotary import RotaryBySample
from mftcoder.training.forward.language_model import LanguageModel

register()
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "short_factor": [1.0] * 4,
    "long_factor": [1.0, 4.0, 9.0, 16.0], "factor": 4.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
DEEPSEEK = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "topk_group": 1, "n_group": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3 longrope": ("phi3", {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE}),
    "llama dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "deepseek_v2 dynamic": ("deepseek_v2", {**DEEPSEEK, "max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "gemma3 dynamic and usual": (
        "gemma3_text",
        {
            "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512, "max_position_embeddings": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": DEFAULT, "full_attention": DYNAMIC},
        },
    ),
}  # fmt: skip
LENGTHS = (20, 50, 32, 70, 40, 9)  # up to 32 positions the usual frequencies, beyond them others


def fresh(family: str) -> Any:
    architecture, fields = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture, **{**SIZES, **deepcopy(fields)}
    )  # transformers writes into its arguments
    return AutoModelForCausalLM.from_config(config).eval()


def packed(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    return ids, torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.mark.parametrize("attention", ["segments", "sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_sample_changes_no_other_of_its_row(family: str, attention: str) -> None:
    ids, positions = packed(LENGTHS)
    model = LanguageModel(fresh(family), attn_implementation="eager", num_tasks=1)
    model.set_attention(attention)
    with model.evaluating():
        together = model.hidden_states(ids, positions)[0].split(LENGTHS)
        for sample, got in zip(ids[0].split(LENGTHS), together, strict=True):
            alone = fresh(family).base_model(input_ids=sample[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_rows_and_earlier_batches_do_not_matter(family: str) -> None:
    ids, positions = packed((70, 20))
    model = LanguageModel(fresh(family), attn_implementation="segments", num_tasks=1)
    model.set_attention("segments")
    rows = torch.stack([ids[0], ids[0].roll(20)]), torch.stack([positions[0], positions[0].roll(20)])
    with model.evaluating():
        above, below = model.hidden_states(*rows)
        after_a_long_one = model.hidden_states(ids[:, :40], torch.arange(40)[None])[0]
    torch.testing.assert_close(above.roll(20, dims=0), below, atol=1e-5, rtol=1e-5)
    alone = fresh(family).base_model(input_ids=ids[:, :40], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(after_a_long_one, alone, atol=1e-5, rtol=1e-5)


def test_frequencies_that_do_not_depend_on_the_length_are_not_changed() -> None:
    torch.manual_seed(0)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    for rope in (DEFAULT, yarn):
        config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=128, rope_parameters=dict(rope))
        assert not RotaryBySample.of(AutoModelForCausalLM.from_config(config))


def test_rows_without_sample_lengths_are_refused() -> None:
    model = fresh("phi3 longrope")
    (rotary,) = RotaryBySample.of(model)
    with pytest.raises(ValueError, match="Phi3RotaryEmbedding did not get the sample lengths of its rows"):
        model(input_ids=torch.arange(3, 23)[None])
    assert RotaryBySample.of(model) == [rotary]  # however often it is asked for
    rotary.layout = SampleLayout(((7,),))
    with pytest.raises(ValueError, match="did not get the sample lengths"):
        model(input_ids=torch.arange(3, 23)[None])
