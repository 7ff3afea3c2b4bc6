"""The common prompt of a pair runs once: the same losses and gradients as of whole texts, with fewer positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mftcoder.data.batches.loader import PackedBatch
from mftcoder.data.batches.packing import assemble
from mftcoder.data.rendering.tokenization import IGNORED, TokenizedSample
from mftcoder.kernels.attention import SampleLayout, register
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.forward.shared_prompts import CompactRow, share_prompts

register()
PAIRS = ((7, 5, 3), (1, 4, 6), (12, 2, 9))  # tokens of the prompt and of both answers


def pair(prompt: int, first: int, second: int, draw: np.random.Generator, *, differs_at: int | None = None) -> Any:
    """A pair of task 1; `differs_at` changes a prompt token of the second text."""
    start = draw.integers(5, 900, prompt)
    parts = []
    for size in (first, second):
        ids = np.concatenate([start, draw.integers(5, 900, size)]).astype(np.int32)
        if parts and differs_at is not None:
            ids[differs_at] += 1
        targets = np.where(np.arange(1, len(ids)) >= prompt, ids[1:], IGNORED).astype(np.int32)
        parts.append((ids[:-1], targets))
    ids, targets = (np.concatenate(both) for both in zip(*parts, strict=True))
    return TokenizedSample(1, ids, targets, "o", len(parts[0][0]))


def batch_of(rows: list[list[TokenizedSample]], length: int = 64) -> PackedBatch:
    packed = [assemble(row, length) for row in rows]
    columns = [
        np.stack([getattr(row, name) for row in packed])
        for name in ("input_ids", "targets", "position_ids", "task_ids")
    ]
    owners = [[one.task, index] for row in rows for index, one in enumerate(row) for _ in one.lengths]
    return PackedBatch(*(torch.from_numpy(column).long() for column in columns), samples=torch.tensor(owners))


@pytest.fixture
def batch() -> PackedBatch:
    """Two rows: pairs and an ordinary sample between them, each row with padding."""
    draw = np.random.default_rng(3)
    ids = draw.integers(5, 900, 9).astype(np.int32)
    alone = TokenizedSample(0, ids[:-1], ids[1:], "o")
    pairs = [pair(*sizes, draw) for sizes in PAIRS]
    return batch_of([[pairs[0], alone, pairs[1]], [pairs[2]]])


def language_model(folder: Path, dtype: torch.dtype) -> LanguageModel:
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="segments", dtype=dtype)
    return LanguageModel(module, attn_implementation="segments", num_tasks=2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_of_whole_texts(
    tiny_llama_dir: Path, batch: PackedBatch, dtype: torch.dtype, tolerance: float
) -> None:
    coefficients = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    coefficients -= 0.5  # as of pairs: of both signs
    found = []
    for shared in (False, True):
        model = language_model(tiny_llama_dir, dtype)
        model.shares_prompts = shared
        losses = model.losses(batch, coefficients)
        losses.objective.backward()
        gradients = [weight.grad for weight in model.module.parameters()]
        found.append((losses.value, losses.loss_sum, model.sample_losses(batch).detach(), *gradients))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=tolerance)  # Llama's norms are in float32 in any dtype


def test_prompts_of_second_texts_and_padding_do_not_run(batch: PackedBatch) -> None:
    compact = CompactRow.of(batch)
    assert compact is not None
    assert compact.layout.shared == (0, 6, 0, 0, 0, 0, 11)
    # All texts without their last token; the second ones without the prompt but its last token.
    assert compact.layout.lengths == ((11, 3, 8, 4, 6, 13, 9),)
    assert sum(compact.layout.lengths[0]) == len(compact.kept)
    trained = (batch.targets != IGNORED).flatten().nonzero().flatten()
    assert torch.equal(compact.kept[compact.places[trained]], trained)


def test_prompts_are_shared_up_to_the_first_token_that_differs() -> None:
    draw = np.random.default_rng(0)
    compact = CompactRow.of(batch_of([[pair(8, 3, 4, draw, differs_at=5)]]))
    assert compact is not None and compact.layout.shared == (0, 5)
    assert CompactRow.of(batch_of([[pair(8, 3, 4, draw, differs_at=0)]])) is None


def test_an_attention_that_cannot_share_is_said_and_each_text_runs_its_prompt(
    tiny_llama_dir: Path, batch: PackedBatch
) -> None:
    said: list[str] = []
    model = language_model(tiny_llama_dir, torch.float32)
    share_prompts(model, batch, 1e-4, said.append)
    assert model.shares_prompts and not said
    model.set_attention("sdpa")
    share_prompts(model, batch, 1e-4, said.append)
    assert not model.shares_prompts
    assert said == ["each text of a pair runs its own prompt: attention 'sdpa' isolates whole texts"]
    with pytest.raises(ValueError, match="cannot run samples that share"):
        SampleLayout(((3, 2),), (0, 1)).keywords("varlen", torch.device("cpu"))


def test_a_model_with_another_result_runs_each_prompt(
    tiny_llama_dir: Path, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example one whose layers connect tokens by other means than attention."""
    said: list[str] = []
    model = language_model(tiny_llama_dir, torch.float32)
    decode: Callable[..., Any] = model.decode

    def mixing(ids: torch.Tensor, positions: torch.Tensor, layout: SampleLayout, **keywords: Any) -> Any:
        output = decode(ids, positions, layout, **keywords)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.roll(1, dims=1)
        return output

    monkeypatch.setattr(model, "decode", mixing)
    share_prompts(model, batch, 1e-4, said.append)
    assert not model.shares_prompts and "the results of a pair differ by" in said[0]
