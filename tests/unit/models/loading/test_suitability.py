"""From the config alone: positions of data.max_length, rows that ranks can share, and the coefficient of the router loss."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from mftcoder.config.load import parse_config
from mftcoder.errors import ModelError
from mftcoder.models.loading.resolve import ResolvedModel
from mftcoder.models.loading.suitability import check_positions, check_row_slices, check_suitability, check_texts

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
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}


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


PAIRS = {"a": {"path": "d", "kind": "dpo"}, "b": {"path": "d", "kind": "orpo"}}


def test_two_texts_that_share_a_row_each_have_the_positions_of_the_model() -> None:
    small, config = model("gpt2", **GPT), run_config(tasks=PAIRS, data={"max_length": 128})
    assert check_suitability(small, config) == []
    assert check_texts(small, config, 64, "b") is None
    with pytest.raises(ModelError, match=r"tasks.b: a text of 65 positions: tiny has a table of only 64 positions"):
        check_texts(small, config, 65, "b")
    rotary = model("llama", **TINY, max_position_embeddings=64)
    assert "tasks.b: a text of 65 positions is more than the 64" in (check_texts(rotary, config, 65, "b") or "")


def test_one_task_of_single_texts_can_fill_a_row() -> None:
    mixed = run_config(tasks={**PAIRS, "c": "d"}, data={"max_length": 128})
    with pytest.raises(ModelError, match=r"data.max_length: 128: tiny has a table"):
        check_suitability(model("gpt2", **GPT), mixed)
    assert check_texts(model("gpt2", **GPT), mixed, 128, "c") is None


def test_a_model_without_positions_has_no_limit() -> None:
    assert check_positions(model("bloom", **TINY), 10**6) is None


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


def run_config(**sections: Any) -> Any:
    return parse_config({"model": "m", "tasks": {"a": "d"}, "output_dir": "o", **sections}, origin="test")


@pytest.mark.parametrize(
    ("architecture", "coefficient", "warned"),
    [("llama", 0.1, True), ("llama", None, False), ("llama", 0, False), ("mixtral", 0.1, False), ("qwen3_moe", 0.1, False)],
)  # fmt: skip
def test_a_router_coefficient_without_routers_has_no_effect_and_is_named(
    architecture: str, coefficient: float | None, warned: bool
) -> None:
    config = run_config(loss={"router_aux_loss_coef": coefficient}, data={"max_length": 64})
    expected = ["loss.router_aux_loss_coef: 0.1 has no effect: tiny has no such loss"] if warned else []
    assert check_suitability(model(architecture), config) == expected


def test_all_reasons_against_a_model_are_named_together() -> None:
    config = run_config(backend={"name": "ddp", "context_parallel_size": 3}, data={"max_length": 100})
    with pytest.raises(ModelError) as caught:
        check_suitability(model("gpt2", **GPT), config)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "backend.context_parallel_size",
        "data.max_length",
    ]
