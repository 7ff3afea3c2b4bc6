"""Rows that are continued together, token by token; they are added and removed between two steps.

Which rows are added when, and when a text ends, is decided by the engines. `SlotBatch` runs a transformers model, `PagedBatch` one that
OpenVINO has compiled.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mftcoder.generation.batches.row import Row, append_tokens
from mftcoder.generation.batches.slots import SlotTable

PREFILL_TOKENS = 8192  # prompt tokens of one forward pass, which bounds its memory
GAP = 64  # spare columns, so that the cache is moved left at most once in as many steps


class Batch(ABC):
    """The rows, and their key-value cache."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Read prompts in one forward pass and choose their next tokens. A row that was removed before continues."""

    @abstractmethod
    def step(self) -> None:
        """Generate one more token for every row."""

    @abstractmethod
    def remove(self, row: int) -> None:
        """Free a row; the last one moves into its place."""

    @abstractmethod
    def room(self, more: int = 0, width: int = 0) -> int:
        """Tokens of the cache that the rows, and `more` rows of at most `width` tokens, need in the next steps."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Tokens of the cache that are in memory."""


class SlotBatch(Batch):
    """Runs a transformers model over a cache of rows times columns. It begins with `capacity` columns for `max_rows` rows, and is allocated anew where it must grow."""

    def __init__(self, model: Any, pad_id: int, *, max_rows: int, capacity: int, slots: int | None = None):
        """`slots`: rows times columns that may be allocated, unless more are in use."""
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.most_slots = slots
        self.least = capacity
        self.table = SlotTable(max_rows=max_rows, capacity=capacity, device=model.device)

    @property
    def slots(self) -> int:
        return self.table.slots

    def room(self, more: int = 0, width: int = 0) -> int:
        columns = self.table.length if self.rows else 0
        return (len(self.rows) + more) * (max(columns, width) + GAP)

    def add(self, rows: Sequence[Row]) -> None:
        self.table.close_gap(GAP)
        texts = [row.ids + row.tokens for row in rows]
        width = max(map(len, texts))
        self._reserve(len(self.rows) + len(rows), max(width, self.table.length if self.rows else 0) + 1)
        logits, cache = self._prefill(texts, width)
        self.table.add(cache, list(map(len, texts)))
        self.rows += rows
        append_tokens(logits, rows)

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
        most = self.most_slots if self.most_slots is not None else 1 << 62
        spare = max(columns + max(4 * GAP, columns // 4), self.least)
        capacity = max(columns, min(spare, most // rows))
        self.table.resize(max(rows, min(rows * 3 // 2, most // capacity)), capacity)

    @torch.no_grad()
    def step(self) -> None:
        self.make_room()
        output = self.model(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device),
            attention_mask=self.table.mask(),
            position_ids=self.table.positions(),
            past_key_values=self.table.cache,
            use_cache=True,
        )
        self.table.length += 1
        append_tokens(output.logits[:, -1], self.rows)

    def remove(self, row: int) -> None:
        if not self.rows[row].finite:
            self.table.clear(row)
        self.table.remove(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()


class PagedBatch(Batch):
    """Runs a model that OpenVINO has compiled, over a cache of at most `slots` tokens, of which each row takes blocks as it grows."""

    def __init__(self, model: Any, slots: int):
        super().__init__()
        self.block = model.block
        self.cache = model.cache(-(-slots // self.block) + 1)
        self._free = list(range(self.cache.blocks))  # a heap: memory is taken from one end
        self._tables: list[list[int]] = []  # blocks of each row
        self._used = 0  # blocks that were written to

    @property
    def slots(self) -> int:
        return self._used * self.block

    def room(self, more: int = 0, width: int = 0) -> int:
        lengths = [len(row.ids) + len(row.tokens) for row in self.rows]
        return self.block * (sum(map(self._blocks, lengths)) + more * self._blocks(width + 1))

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def add(self, rows: Sequence[Row]) -> None:
        texts = [row.ids + row.tokens for row in rows]
        first = len(self.rows)
        self.rows += rows
        self._tables += [[] for _ in rows]
        append_tokens(self._forward(texts, [0] * len(rows), first), rows)

    def step(self) -> None:
        past = [len(row.ids) + len(row.tokens) - 1 for row in self.rows]
        append_tokens(self._forward([row.tokens[-1:] for row in self.rows], past, 0), self.rows)

    def _forward(self, texts: Sequence[Sequence[int]], past: Sequence[int], first: int) -> Tensor:
        """Logits after the next tokens of the rows from `first` on [rows, vocabulary]."""
        tables = self._tables[first:]
        for text, before, table in zip(texts, past, tables, strict=True):
            while len(table) < self._blocks(before + len(text)):
                table.append(heappop(self._free))
                self._used = max(self._used, table[-1] + 1)
        return self.cache.forward(texts, past, tables)

    def remove(self, row: int) -> None:
        for block in self._tables[row]:
            heappush(self._free, block)
        self._tables[row] = self._tables[-1]
        self._tables.pop()
        self.rows[row] = self.rows[-1]
        self.rows.pop()


def open_batch(model: Any, pad_id: int, *, max_rows: int, capacity: int, slots: int | None = None) -> Batch:
    """The batch that runs this model, for about `max_rows` rows of `capacity` tokens; `slots` is the most that its cache may take."""
    if hasattr(model, "forward"):
        return SlotBatch(model, pad_id, max_rows=max_rows, capacity=capacity, slots=slots)
    return PagedBatch(model, slots or max_rows * capacity)
