"""The key-value cache of a batch whose rows change: allocated once, written in place, compacted when a row ends.

Rows are right-aligned: all end at the same column; shorter ones start later and are masked before their start. When a row ends, the
last row moves into its slot. A new row is prefilled separately and copied in; where it is longer than the others, they move right.

    column      0    1    2    3    4    5          length 6, rows 2
    row 0       .    a0   a1   a2   a3   a4
    row 1       .    .    .    .    b0   b1         starts [1, 4]
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SlotLayer(DynamicLayer):
    """One layer's keys and values [rows, heads, capacity, size]; `table.rows` rows and `table.length` columns are in use."""

    keys: Any
    values: Any

    def __init__(self, table: "SlotTable"):
        super().__init__()
        self.table = table

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate memory for the shapes of the first states."""
        rows, capacity = self.table.max_rows, self.table.capacity
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(rows, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def resize(self, rows: int, capacity: int) -> None:
        """Allocate for another number of rows and columns; what is in use is copied."""
        used, columns = self.table.rows, self.table.length
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
            new[:used, :, :columns] = old[:used, :, :columns]
            setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states [rows, heads, 1, size] at column `length`; returns views of everything in use."""
        rows, begin = self.table.rows, self.table.length
        end = begin + key_states.shape[2]
        self.keys[:rows, :, begin:end] = key_states
        self.values[:rows, :, begin:end] = value_states
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.table.length


class SlotTable:
    """The slots of all layers, and the first column of each row."""

    def __init__(self, *, max_rows: int, capacity: int, device: torch.device):
        self.max_rows = max_rows
        self.capacity = capacity
        self.device = device
        self.length = 0
        self.starts: list[int] = []  # first column of each row
        layer = partial(
            SlotLayer, weakref.proxy(self)
        )  # no cycle: the memory is freed with the table, not when cycles are collected
        self.cache = Cache(layer_class_to_replicate=layer)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        return len(self.starts)

    def mask(self) -> Tensor:
        """The columns that each row sees, including the one written next: int64 [rows, length + 1]."""
        starts = torch.tensor(self.starts, device=self.device)
        return (torch.arange(self.length + 1, device=self.device) >= starts[:, None]).long()

    def positions(self) -> Tensor:
        """The position of each row's next token: int64 [rows, 1]."""
        return torch.tensor([[self.length - start] for start in self.starts], device=self.device)

    def add(self, prefilled: Cache, lengths: Sequence[int]) -> None:
        """Add right-aligned rows whose states were computed separately; `lengths` are their tokens, at most `capacity`."""
        width = max(lengths)
        if not self.rows:
            self.length = width
        self._move_right(width - self.length)
        first, begin = self.rows, self.length - width
        for index, layer in enumerate(_states(prefilled)):
            mine = self._layer(index, layer)
            mine.keys[first : first + len(lengths), :, begin : self.length] = layer.keys
            mine.values[first : first + len(lengths), :, begin : self.length] = layer.values
        self.starts += [self.length - length for length in lengths]

    @property
    def slots(self) -> int:
        """Slots in memory: rows times columns."""
        return self.max_rows * self.capacity

    def resize(self, rows: int, capacity: int) -> None:
        """Allocate for another number of rows and columns, at least those in use."""
        self.max_rows, self.capacity = rows, capacity
        if not self.rows:
            self.length = 0
        for layer in self._layers():
            layer.resize(rows, capacity)

    def _layer(self, index: int, like: Any) -> SlotLayer:
        while len(self.cache.layers) <= index:
            self.cache.layers.append(SlotLayer(weakref.proxy(self)))
        layer: Any = self.cache.layers[index]
        if not layer.is_initialized:
            layer.lazy_initialization(like.keys, like.values)
        return layer

    def remove(self, row: int) -> None:
        """Free a row; the last one moves into its place."""
        last = self.rows - 1
        if row != last:
            for layer in self._layers():
                layer.keys[row, :, : self.length] = layer.keys[last, :, : self.length]
                layer.values[row, :, : self.length] = layer.values[last, :, : self.length]
        self.starts[row] = self.starts[last]
        self.starts.pop()

    def clear(self, row: int) -> None:
        """Make the states of a row zero: a masked NaN would still make the next row in its slot NaN."""
        for layer in self._layers():
            layer.keys[row], layer.values[row] = 0, 0

    def close_gap(self, least: int) -> None:
        """Move all rows left by the columns that no row uses, if there are at least `least` of them."""
        gap = min(self.starts, default=0)
        if gap < max(least, 1):
            return
        for layer in self._layers():
            for states in (layer.keys, layer.values):
                states[: self.rows, :, : self.length - gap] = states[: self.rows, :, gap : self.length].clone()
        self.length -= gap
        self.starts = [start - gap for start in self.starts]

    def _move_right(self, columns: int) -> None:
        """Move all rows right, so that a longer row can be added. The columns that this frees are masked."""
        if columns <= 0:
            return
        for layer in self._layers():
            for states in (layer.keys, layer.values):
                states[: self.rows, :, columns : columns + self.length] = states[: self.rows, :, : self.length].clone()
        self.length += columns
        self.starts = [start + columns for start in self.starts]

    def _layers(self) -> list[Any]:
        return _states(self.cache)


def _states(cache: Cache) -> list[Any]:
    return list(cache.layers)
