"""Which attention a run takes: one that runs as in training and gives each packed sample the result that it has alone."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from mftcoder.errors import ModelError
from mftcoder.kernels import attention
from mftcoder.kernels.attention import SampleLayout, segments_attention
from mftcoder.training.forward.isolation import (
    SHORTEST,
    _distance,
    _Row,
    attention_window,
    choose_attention,
    pick_lengths,
    verify_isolation,
)
from mftcoder.training.forward.language_model import LanguageModel

attention.register()
VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
DEEPSEEK = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "topk_group": 1, "n_group": 1,
}  # fmt: skip


def language_model(architecture: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if not ("n_embd" in fields and "size" in name)}
    config = AutoConfig.for_model(architecture, **{**sizes, **fields, "vocab_size": VOCABULARY})
    module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LanguageModel(module.train(), attn_implementation="eager", num_tasks=1)


def samples(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (
        torch.from_numpy(np.random.default_rng(length).integers(5, VOCABULARY, length)) for length in lengths
    )
    return first, second


@pytest.fixture
def attend() -> Iterator[Any]:
    """`attend(name, function)`: an attention of that name for this test."""
    names = []

    def register(name: str, function: Any) -> None:
        AttentionInterface.register(name, function)
        names.append(name)

    yield register
    for name in names:
        del AttentionInterface._global_mapping[name]


def verified(model: LanguageModel, implementation: str, *lengths: int) -> None:
    model.set_attention(implementation)
    verify_isolation(model, samples(*lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["segments", "sdpa", "eager"])
def test_every_attention_that_isolates_is_accepted(implementation: str, dtype: torch.dtype) -> None:
    verified(language_model(dtype=dtype), implementation, 40, 50)
    verified(language_model("mistral", dtype, sliding_window=16), implementation, 40, 50)


def test_rounding_that_a_deep_model_amplifies_is_no_leak() -> None:
    """Twelve layers of large weights in bfloat16 change a result by a fifth of its size; a leak changes it by more than its size."""
    model = language_model(dtype=torch.bfloat16, num_hidden_layers=12)
    with torch.no_grad():
        for layer in model.decoder_layers():
            for weight in layer.parameters():
                weight.mul_(30 if weight.ndim == 2 else 1)
    row, moved = _Row.of(samples(40, 50)), {}
    for implementation in ("segments", "sdpa", "eager"):
        verified(model, implementation, 40, 50)
        with model.evaluating():
            moved[implementation] = model.hidden_states(row.input_ids, row.position_ids)[0]
    assert 0.1 < _distance(moved["segments"], moved["sdpa"], slice(40, None)) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["segments", "sdpa"])
def test_samples_that_see_each_other_are_refused(
    implementation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(dtype=dtype)
    of = SampleLayout.of
    monkeypatch.setattr(SampleLayout, "of", lambda positions: of(torch.arange(positions.numel())[None]))
    hidden_states = model.hidden_states
    straight = lambda ids, positions: hidden_states(ids, torch.arange(ids.numel())[None])  # noqa: E731
    monkeypatch.setattr(model, "hidden_states", straight if implementation == "sdpa" else hidden_states)
    with pytest.raises(
        ModelError, match=f"LlamaForCausalLM with attention '{implementation}' does not keep packed samples apart"
    ):
        verified(model, implementation, 40, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_attention_that_ignores_the_sliding_window_is_refused(dtype: torch.dtype, attend: Any) -> None:
    def far_sighted(*arguments: Any, sliding_window: int | None = None, **keywords: Any) -> Any:
        return segments_attention(*arguments, **keywords)

    attend("far_sighted", far_sighted)
    model = language_model("mistral", dtype, sliding_window=32)
    model.set_attention("far_sighted")
    rows = SampleLayout.keywords
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleLayout, "keywords", lambda layout, _, device, compiled: rows(layout, "segments", device))
        verified(model, "far_sighted", 20, 30)  # no sample is longer than the window
        with pytest.raises(ModelError, match="does not keep to its window of 32 positions"):
            verified(model, "far_sighted", 60, 70)


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_may_be_smaller_than_queries(version: str, dtype: torch.dtype) -> None:
    said: list[str] = []
    model = language_model(f"deepseek_{version}", dtype, **DEEPSEEK)
    choose_attention(model, ("segments", "sdpa"), samples(40, 50), said.append)
    assert model.attn_implementation == "segments" and not said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotImplementedError("no kernel image"), "no kernel image"),
        (RuntimeError("head sizes differ\nin many lines"), "head sizes differ in many lines"),
        (ImportError("flash_attn is missing"), "flash_attn is missing"),
    ],
)
def test_a_kernel_that_cannot_run_is_skipped_with_one_line(error: Exception, said: str, attend: Any) -> None:
    def broken(*arguments: Any, **keywords: Any) -> Any:
        raise error

    attend("broken", broken)
    model, lines = language_model(), []
    choose_attention(model, ("broken", "sdpa"), samples(40, 50), lines.append)
    assert model.attn_implementation == model.causal_lm.config._attn_implementation == "sdpa"
    assert lines == [
        f"attention 'broken' does not fit, trying 'sdpa': LlamaForCausalLM cannot run packed rows with attention 'broken': {said}"
    ]
    with pytest.raises(ModelError, match=rf"{re.escape(said)}\. Set model.attn_implementation: auto$"):
        choose_attention(model, ("broken",), samples(40, 50), lines.append)


def test_after_out_of_memory_no_other_attention_is_tried(attend: Any) -> None:
    def greedy(*arguments: Any, **keywords: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    attend("greedy", greedy)
    with pytest.raises(torch.OutOfMemoryError):
        choose_attention(language_model(), ("greedy", "sdpa"), samples(40, 50), print)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_bigcode"])
def test_attention_dropout_is_tried_before_the_first_step(architecture: str, attend: Any) -> None:
    def without_dropout(*arguments: Any, dropout: float = 0.0, **keywords: Any) -> Any:
        if dropout:
            raise ValueError(f"has no dropout, and the model trains with {dropout}")
        return segments_attention(*arguments, **keywords)

    attend("without_dropout", without_dropout)
    model, lines = language_model(architecture, **GPT), []
    choose_attention(model, ("without_dropout", "segments"), samples(40, 50), lines.append)
    assert model.attn_implementation == "segments"
    assert "has no dropout, and the model trains with 0.1" in lines[0]


def test_varlen_is_skipped_without_a_gpu() -> None:
    model, lines = language_model(), []
    choose_attention(model, ("varlen", "segments"), samples(40, 50), lines.append)
    assert model.attn_implementation == "segments"
    assert "varlen attention needs a GPU of compute capability 8.0 or more" in lines[0]


def test_the_check_changes_no_random_state_mode_or_gradient() -> None:
    model = language_model("gpt2", **GPT)
    before = torch.get_rng_state()
    choose_attention(model, ("segments",), samples(40, 50), print)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.module.training and all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}), ("cohere", {}), ("granite", {"logits_scaling": 8.0})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_head_is_applied_as_the_model_does(architecture: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    model = language_model(architecture, dtype, **fields)
    verified(model, "eager", 40, 50)
    model.logit_scale *= 1.1
    with pytest.raises(ModelError, match="changes its logits after the head"):
        verified(model, "eager", 40, 50)


def test_layers_that_look_back_without_attention_are_refused() -> None:
    recurrent = language_model("mamba", state_size=4, head_dim=8)
    with pytest.raises(ModelError, match="packed samples stay apart"):
        verified(recurrent, "eager", 40, 50)


@pytest.mark.parametrize(
    ("architecture", "fields", "window"),
    [
        ("llama", {}, None),
        ("mistral", {"sliding_window": 16}, 16),
        ("gemma3_text", {"sliding_window": 64}, 64),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64}, None),
        ("llama4_text", {"attention_chunk_size": 128}, 128),
    ],
)
def test_the_window_is_the_smallest_of_all_layers(
    architecture: str, fields: dict[str, Any], window: int | None
) -> None:
    assert attention_window(AutoConfig.for_model(architecture, **fields)) == window


def test_samples_are_longer_than_the_window_if_possible_and_short_otherwise() -> None:
    lengths = np.array([9, 500, 40, 130, 33, 160, 900])
    assert [lengths[place] for place in pick_lengths(lengths, None)] == [33, 40]
    assert [lengths[place] for place in pick_lengths(lengths, 128)] == [160, 500]
    assert [lengths[place] for place in pick_lengths(lengths, 600)] == [500, 900]  # one is longer: the two longest
    assert [lengths[place] for place in pick_lengths(lengths, 900)] == [33, 40]  # none is longer: nothing to see
    assert [lengths[place] for place in pick_lengths(lengths[:1], None)] == [9, 9]
    assert SHORTEST == 32
