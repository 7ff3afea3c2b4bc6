"""The config alone tells whether ranks can share the rows of a model."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from mftcoder.errors import ModelError
from mftcoder.models.loading.resolve import ResolvedModel
from mftcoder.models.loading.suitability import check_row_slices

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}


def model(architecture: str, **fields: Any) -> ResolvedModel:
    return ResolvedModel("tiny", Path("tiny"), AutoConfig.for_model(architecture, **fields), parameters=0)


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen2", "qwen3_moe", "deepseek_v2", "mixtral", "gpt_bigcode", "starcoder2", "phi", "gemma3_text", "glm"],
)
def test_rows_of_models_that_only_attend_can_be_shared(architecture: str) -> None:
    check_row_slices(model(architecture), 2)


@pytest.mark.parametrize(
    ("architecture", "fields", "reason"),
    [
        ("llama", {"num_attention_heads": 9, "hidden_size": 72}, "its 9 attention heads cannot be divided evenly among 2 ranks. Set it to 3, 9"),
        ("jamba", {}, "by other means than attention"),
        ("lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, r"by other means than attention \(conv\)"),
        ("llama4_text", {}, r"\(chunked_attention\)"),
        ("bloom", {}, "BloomForCausalLM does not use transformers' exchangeable attention"),
        ("gemma2", {}, "attention scores are capped"),
        ("phi3", {"rope_parameters": LONGROPE}, r"\(longrope\) depends on the length"),
    ],
)  # fmt: skip
def test_the_reasons_against_sharing_rows_are_named(architecture: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        check_row_slices(model(architecture, **fields), 2)
    assert all(problem.startswith("backend.context_parallel_size: 2: tiny: ") for problem in caught.value.problems)
    check_row_slices(model(architecture, **fields), 1)
