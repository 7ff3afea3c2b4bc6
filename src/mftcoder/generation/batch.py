"""The rows that a transformers model continues together, token by token. Rows are added and removed between two steps.

Which rows are added when, and when a text ends, is decided by the engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mftcoder.data.tokenizers.word_completion import HeldText
from mftcoder.generation.engine import Sampling
from mftcoder.generation.sampler import choose_tokens
from mftcoder.generation.slots import SlotTable

PREFILL_TOKENS = 8192  # prompt tokens of one forward pass, which bounds its memory
GAP = 64  # spare columns, so that the cache is moved left at most once in as many steps


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


class Batch:
    """The rows, and their key-value cache. It begins with `capacity` columns for `max_rows` rows, and is allocated anew where it must grow."""

    def __init__(self, model: Any, pad_id: int, *, max_rows: int, capacity: int, slots: int | None = None):
        """`slots`: rows times columns that may be allocated, unless more are in use."""
        self.model = model
        self.pad_id = pad_id
        self.slots = slots
        self.least = capacity
        self.rows: list[Row] = []
        self.table = SlotTable(max_rows=max_rows, capacity=capacity, device=model.device)

    @property
    def length(self) -> int:
        """Columns of the cache that are in use."""
        return self.table.length if self.rows else 0

    def add(self, rows: Sequence[Row]) -> None:
        """Prefill prompts in one forward pass and choose their next tokens. A row that was removed before continues."""
        self.table.close_gap(GAP)
        texts = [row.ids + row.tokens for row in rows]
        width = max(map(len, texts))
        self._reserve(len(self.rows) + len(rows), max(width, self.length) + 1)
        logits, cache = self._prefill(texts, width)
        self.table.add(cache, list(map(len, texts)))
        self.rows += rows
        _append(logits, rows)

    @torch.no_grad()
    def _prefill(self, texts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, DynamicCache]:
        """Logits of each text's next token [rows, vocabulary], and the cache of all texts, right-aligned."""
        padded = [[self.pad_id] * (width - len(ids)) + list(ids) for ids in texts]
        seen = [[0] * (width - len(ids)) + [1] * len(ids) for ids in texts]
        mask = torch.tensor(seen, device=self.model.device)  # [rows, width]
        cache = DynamicCache()
        output = self.model(
            input_ids=torch.tensor(padded, device=self.model.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    def make_room(self) -> None:
        """Make room for one more column: by moving the rows left where that gives several, else by growing."""
        if self.table.length < self.table.capacity:
            return
        self.table.close_gap(GAP)
        self._reserve(len(self.rows), self.table.length + 1)

    def _reserve(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns. Spare ones are allocated too, as far as `slots` allows; rows that have ended are not."""
        if rows <= self.table.max_rows and columns <= self.table.capacity:
            return
        most = self.slots if self.slots is not None else 1 << 62
        spare = max(columns + max(4 * GAP, columns // 4), self.least)
        capacity = max(columns, min(spare, most // rows))
        self.table.resize(max(rows, min(rows * 3 // 2, most // capacity)), capacity)

    @torch.no_grad()
    def step(self) -> None:
        """Generate one more token for every row."""
        self.make_room()
        output = self.model(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device),
            attention_mask=self.table.mask(),
            position_ids=self.table.positions(),
            past_key_values=self.table.cache,
            use_cache=True,
        )
        self.table.length += 1
        _append(output.logits[:, -1], self.rows)

    def remove(self, row: int) -> None:
        """Free a row; the last one moves into its place."""
        self.table.remove(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()


def _append(logits: Tensor, rows: Sequence[Row]) -> None:
    """Choose the next token of each row from its logits [rows, vocabulary]."""
    chosen = choose_tokens(_held(logits, rows), [row.sampling for row in rows], [row.stream for row in rows])
    for row, token in zip(rows, chosen, strict=True):
        row.tokens.append(token)
        if row.held is not None and row.held.left:
            row.held.take(token)
    noted = [index for index, row in enumerate(rows) if row.logprobs is not None]
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
