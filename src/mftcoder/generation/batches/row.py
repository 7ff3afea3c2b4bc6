"""A prompt and the tokens after it, and how its next token is chosen. What computes the logits of many rows together is a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mftcoder.data.tokenizers.word_completion import HeldText
from mftcoder.generation.engine import Sampling
from mftcoder.generation.sampler import NOT_FINITE, choose_tokens

DAMAGED = "the model's logits are not finite numbers (NaN or inf): its weights, or those of its adapter, are damaged. Export or download them again"
"""What is wrong where a row is not finite."""


@dataclass(frozen=True)
class TokenChoice:
    """A token, its log probability under the model (temperature 1), and the most probable tokens at its place."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Row:
    """A prompt and the tokens after it."""

    ids: list[int]  # the prompt's tokens
    limit: int  # tokens that may be generated
    sampling: Sampling
    stream: np.random.Generator
    logprobs: int | None = None  # number of most probable tokens to note in `choices`; None notes nothing
    held: HeldText | None = None  # what the next tokens must agree with
    tokens: list[int] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)
    finite: bool = True
    """False: the logits after the last token are not finite numbers, so that no token follows. The row must be removed."""


def append_tokens(logits: Tensor, rows: Sequence[Row]) -> None:
    """Choose the next token of each row from its logits [rows, vocabulary], if they are finite."""
    chosen = choose_tokens(_held(logits, rows), [row.sampling for row in rows], [row.stream for row in rows])
    for row, token in zip(rows, chosen, strict=True):
        row.finite = token != NOT_FINITE
        if not row.finite:
            continue
        row.tokens.append(token)
        if row.held is not None and row.held.left:
            row.held.take(token)
    noted = [index for index, row in enumerate(rows) if row.logprobs is not None and row.finite]
    if noted:
        _note(logits[noted].float().log_softmax(dim=-1), [rows[index] for index in noted])


def _held(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logits, with those of a row that is held to a text only at the tokens that agree with it."""
    holding = [(index, row.held) for index, row in enumerate(rows) if row.held is not None and row.held.left]
    if not holding:
        return logits
    logits = logits.clone()
    for index, held in holding:
        allowed = torch.tensor(held.allowed(), device=logits.device)
        values = logits[index, allowed]
        logits[index] = float("-inf")
        logits[index, allowed] = values
    return logits


def _note(logprobs: Tensor, rows: Sequence[Row]) -> None:
    """Note the log probability of each row's last token, and the most probable tokens at its place."""
    chosen = logprobs.gather(1, torch.tensor([[row.tokens[-1]] for row in rows], device=logprobs.device))[:, 0].tolist()
    values, ids = logprobs.topk(max(row.logprobs or 0 for row in rows), dim=-1)
    for row, logprob, top_ids, top_values in zip(rows, chosen, ids.tolist(), values.tolist(), strict=True):
        top = tuple(zip(top_ids, top_values, strict=True))[: row.logprobs]
        row.choices.append(TokenChoice(row.tokens[-1], logprob, top))
