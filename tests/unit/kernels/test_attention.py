"""Packed attention: a sample in a row is as if it were alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from mftcoder.kernels.attention import SampleLayout, register, segments_attention

register()


def tiny(model_class: type = LlamaForCausalLM, config_class: type = LlamaConfig, **extra: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="segments", use_cache=False, **extra,
    )  # fmt: skip
    return model_class(config).eval()


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, SampleLayout]:
    total = sum(lengths)
    ids = torch.arange(total)[None] * 7 % 97
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return ids, positions, SampleLayout.of(positions)


def test_layout_counts_the_samples_of_each_row() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    assert SampleLayout.of(positions).lengths == ((3, 2), (5,))


def test_layout_refuses_a_row_that_begins_in_the_middle_of_a_sample() -> None:
    with pytest.raises(ValueError, match="position 0"):
        SampleLayout.of(torch.tensor([[3, 4, 0, 1]]))


def test_cumulative_lengths_span_all_rows_and_keep_their_shape() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    bounds = SampleLayout.of(positions).keywords("varlen", torch.device("cpu"))["cu_seq_lens_q"]
    assert bounds[:4].tolist() == [0, 3, 5, 10]
    assert set(bounds[4:].tolist()) == {10} and len(bounds) == 65


def test_packed_logits_equal_each_samples_own() -> None:
    model = tiny()
    ids, positions, layout = packed([9, 1, 14])
    together = model(input_ids=ids, position_ids=positions, **layout.keywords("segments", ids.device)).logits[0]
    start = 0
    for length in (9, 1, 14):
        model.set_attn_implementation("sdpa")
        alone = model(input_ids=ids[:, start : start + length]).logits[0]
        model.set_attn_implementation("segments")
        torch.testing.assert_close(together[start : start + length], alone, atol=1e-5, rtol=1e-5)
        start += length


def test_a_sliding_window_is_honoured() -> None:
    model = tiny(MistralForCausalLM, MistralConfig, sliding_window=4)
    ids, positions, layout = packed([12])
    windowed = model(input_ids=ids, position_ids=positions, **layout.keywords("segments", ids.device)).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(windowed, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_model_that_hands_nothing_down_fails_instead_of_mixing_samples() -> None:
    ids, positions, _ = packed([3, 4])
    with pytest.raises(ValueError, match="does not hand segment_lengths down"):
        tiny()(input_ids=ids, position_ids=positions)


def test_what_would_be_ignored_is_refused() -> None:
    q = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        segments_attention(torch.nn.Identity(), q, q, q, None, segment_lengths=((3,),), softcap=30.0)


@pytest.mark.parametrize("length", [1, 7, 300, 600])
def test_bfloat16_on_a_cpu_gives_what_float32_gives_but_for_rounding(length: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, length, 16, dtype=torch.bfloat16) for heads in (6, 2, 2)]
    upstream = torch.randn(1, length, 6, 16)

    def attend(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors)
        out, _ = segments_attention(torch.nn.Identity(), q, k, v, None, segment_lengths=((length,),))
        return out.float(), *(g.float() for g in torch.autograd.grad(out, [q, k, v], upstream.to(dtype)))

    for got, want in zip(attend(torch.bfloat16), attend(torch.float32), strict=True):
        torch.testing.assert_close(got, want, atol=max(0.02 * want.abs().max().item(), 0.01), rtol=0.02)
