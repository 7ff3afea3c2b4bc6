"""Packed attention: a sample in a row is as if it were alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from mftcoder.kernels import attention
from mftcoder.kernels.attention import SampleLayout, register, segments_attention, varlen_attention, varlen_problem

register()
GPU = torch.device("cuda", 0)


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


def test_a_sliding_window_is_respected() -> None:
    model = tiny(MistralForCausalLM, MistralConfig, sliding_window=4)
    ids, positions, layout = packed([12])
    windowed = model(input_ids=ids, position_ids=positions, **layout.keywords("segments", ids.device)).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(windowed, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_model_that_does_not_pass_sample_lengths_fails() -> None:
    ids, positions, _ = packed([3, 4])
    with pytest.raises(ValueError, match="does not pass segment_lengths to"):
        tiny()(input_ids=ids, position_ids=positions)


def test_unsupported_arguments_are_refused() -> None:
    q = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        segments_attention(torch.torch.nn.Identity(), q, q, q, None, segment_lengths=((3,),), softcap=30.0)


@pytest.mark.parametrize("length", [1, 7, 300, 600])
def test_bfloat16_on_a_cpu_equals_float32_except_for_rounding(length: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, length, 16, dtype=torch.bfloat16) for heads in (6, 2, 2)]
    upstream = torch.randn(1, length, 6, 16)

    def attend(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors)
        out, _ = segments_attention(torch.torch.nn.Identity(), q, k, v, None, segment_lengths=((length,),))
        return out.float(), *(g.float() for g in torch.autograd.grad(out, [q, k, v], upstream.to(dtype)))

    for got, want in zip(attend(torch.bfloat16), attend(torch.float32), strict=True):
        torch.testing.assert_close(got, want, atol=max(0.02 * want.abs().max().item(), 0.01), rtol=0.02)


def attend_alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float) -> torch.Tensor:
    """Plain attention over each sample alone; [B, H, L, D] -> [B, L, H, Dv]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    parts = []
    for a, b, c in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True):
        later = torch.ones(a.shape[2], a.shape[2], dtype=torch.bool).triu(1)
        parts.append(((a @ b.transpose(2, 3) * scale).masked_fill(later, -torch.inf)).softmax(-1) @ c)
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_of_another_size_than_the_queries(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 25, size, dtype=dtype) for heads, size in ((4, 24), (2, 24), (2, 16)))
    got, _ = segments_attention(torch.torch.nn.Identity(), q, k, v, None, scaling=0.3, segment_lengths=((9, 1, 15),))
    want = attend_alone(q.float(), k.float(), v.float(), [9, 1, 15], 0.3)
    torch.testing.assert_close(got.float(), want, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.02)


def test_varlen_pads_values_to_the_queries_size_and_removes_the_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain attention replaces the kernel and requires one head size, as the kernel does."""

    def kernel(q, k, v, starts, _, longest, __, *, scale, **rest):  # type: ignore[no-untyped-def]
        assert q.shape[-1] == k.shape[-1] == v.shape[-1] and longest == 16
        lengths = starts.diff()[starts.diff() > 0].tolist()
        return attend_alone(*(x.transpose(0, 1)[None] for x in (q, k, v)), lengths, scale)[0]

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(attention, "varlen_problem", lambda *_: None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 25, size) for heads, size in ((4, 24), (2, 24), (2, 16)))
    keywords = SampleLayout(((9, 1, 15),)).keywords("varlen", torch.device("cpu"))
    got, _ = varlen_attention(torch.torch.nn.Identity(), q, k, v, None, **keywords)
    torch.testing.assert_close(got, attend_alone(q, k, v, [9, 1, 15], 24**-0.5))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("sizes", [(24, 24), (24, 16)])
def test_the_operator_of_compiled_layers_equals_the_loop_over_samples(
    window: int | None, sizes: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layout = SampleLayout(((9, 1, 15),))
    shapes = ((4, sizes[0]), (2, sizes[0]), (2, sizes[1]))
    inputs = [torch.randn(1, heads, 25, size, dtype=torch.float64) for heads, size in shapes]
    outer = torch.randn(1, 25, 4, sizes[1], dtype=torch.float64)
    results = []
    for compiled in (False, True):
        own = [x.clone().requires_grad_() for x in inputs]
        keywords = layout.keywords("segments", torch.device("cpu"), compiled=compiled)
        out, _ = segments_attention(torch.torch.nn.Identity(), *own, None, sliding_window=window, **keywords)
        results.append((out.detach(), *torch.autograd.grad(out, own, outer)))
    for plain, opaque in zip(*results, strict=True):
        torch.testing.assert_close(opaque, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("card", "dtype", "sizes", "dropout", "problem"),
    [
        ((9, 0), torch.bfloat16, (64, 64), 0.0, None),
        ((8, 0), torch.float16, (192, 128), 0.0, None),
        ((7, 5), torch.bfloat16, (64, 64), 0.0, "needs a GPU of compute capability 8.0 or more"),
        ((9, 0), torch.float32, (64, 64), 0.0, "needs bfloat16, not float32"),
        ((9, 0), torch.bfloat16, (20, 20), 0.0, "not of 20 with values of 20"),
        ((9, 0), torch.bfloat16, (512, 512), 0.0, "not of 512 with values of 512"),
        ((9, 0), torch.bfloat16, (64, 128), 0.0, "not of 64 with values of 128"),
        ((9, 0), torch.bfloat16, (64, 64), 0.1, "has no dropout, but this model trains with 0.1"),
    ],
)
def test_varlen_names_what_it_does_not_support(
    card: tuple[int, int], dtype: torch.dtype, sizes: tuple[int, int], dropout: float, problem: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    found = varlen_problem(dtype, *sizes, dropout, GPU)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    "lengths", [(9, 7), (600, 550)], ids=["short", "long"]
)  # products are used up to 512 positions
def test_a_sample_goes_on_after_the_first_positions_of_the_one_before_it(
    dtype: torch.dtype, tolerance: float, lengths: tuple[int, int]
) -> None:
    """The second sample's last positions get what they get in the whole sample, with fewer key heads than query heads."""
    draw = torch.Generator().manual_seed(0)
    shared = 5
    query, key, value = (torch.randn(1, heads, sum(lengths), 8, generator=draw, dtype=dtype) for heads in (4, 2, 2))
    start = lengths[0]
    for tensor in (query, key, value):
        tensor[:, :, start : start + shared] = tensor[:, :, :shared]
    whole, _ = segments_attention(torch.nn.Identity(), query, key, value, None, segment_lengths=(lengths,))
    kept = torch.cat([torch.arange(start), torch.arange(start + shared, sum(lengths))])
    found, _ = segments_attention(
        torch.nn.Identity(), query[:, :, kept], key[:, :, kept], value[:, :, kept], None,
        segment_lengths=((start, lengths[1] - shared),), segment_shared=(0, shared),
    )  # fmt: skip
    torch.testing.assert_close(found, whole[:, kept], rtol=0, atol=tolerance)
