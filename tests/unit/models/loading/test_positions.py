"""data.max_length is compared with the model's positions, from its config alone."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from mftcoder.errors import ModelError
from mftcoder.models.loading.resolve import ResolvedModel
from mftcoder.models.loading.suitability import check_positions

TINY = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
GPT = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def model(architecture: str, **fields: Any) -> ResolvedModel:
    return ResolvedModel("tiny", Path("tiny"), AutoConfig.for_model(architecture, **fields), parameters=0)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("gpt2", GPT),
        ("gpt_bigcode", GPT),
        ("gptj", {**GPT, "rotary_dim": 4}),
        ("codegen", {**GPT, "rotary_dim": 4}),
        (
            "gpt_neo",
            {
                "vocab_size": 97,
                "hidden_size": 32,
                "max_position_embeddings": 64,
                "num_heads": 4,
                "num_layers": 1,
                "attention_types": [[["global"], 1]],
            },
        ),
        ("opt", {**TINY, "max_position_embeddings": 64, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    ],
)
def test_a_table_of_positions_ends(architecture: str, fields: dict[str, Any]) -> None:
    small = model(architecture, **fields)
    assert check_positions(small, 64) is None
    with pytest.raises(
        ModelError, match=r"data.max_length: 65: tiny has a table of only 64 positions. Set .* to 64 or less"
    ):
        check_positions(small, 65)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("architecture", "rope", "reach"),
    [
        ("llama", DEFAULT, 64),
        ("llama", YARN, 256),
        ("llama", LINEAR, 128),
        ("gemma3_text", {"sliding_attention": DEFAULT, "full_attention": LINEAR}, 128),
    ],
)
def test_the_positions_of_a_rotary_embedding_follow_its_scaling(
    architecture: str, rope: dict[str, Any], reach: int
) -> None:
    small = model(architecture, **TINY, max_position_embeddings=64, rope_parameters=deepcopy(rope))
    assert check_positions(small, reach) is None
    warning = check_positions(small, reach + 1)
    assert (
        warning and f"data.max_length: {reach + 1} is more than the {reach} positions that tiny was made for" in warning
    )


def test_a_model_without_positions_has_no_limit() -> None:
    assert check_positions(model("bloom", **TINY), 10**6) is None
