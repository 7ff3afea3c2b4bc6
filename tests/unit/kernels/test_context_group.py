"""A group of ranks that share rows: the positions of each rank, and the numbers of heads that can be divided."""

import pytest
import torch

from mftcoder.kernels.attention import segments_attention
from mftcoder.kernels.context_group import ALONE, ContextGroup


def test_slices_are_of_one_length_and_in_order() -> None:
    row = torch.arange(1, 6)[None]
    slices = [ContextGroup(size=2, index=index).own(row).tolist() for index in range(2)]
    assert slices == [[[1, 2, 3]], [[4, 5, 0]]]
    assert ALONE.own(row).tolist() == row.tolist()


@pytest.mark.parametrize(("heads", "size", "repeated"), [(1, 2, 2), (2, 2, 2), (8, 2, 8), (2, 4, 4), (4, 6, 12)])
def test_key_value_heads_are_repeated_as_little_as_possible(heads: int, size: int, repeated: int) -> None:
    found = ContextGroup(size=size).repeated(torch.arange(heads).view(1, heads, 1, 1)).flatten().tolist()
    assert found == [head for head in range(heads) for _ in range(repeated // heads)]


def test_query_heads_are_never_repeated() -> None:
    query = torch.zeros(1, 3, 4, 8)
    with pytest.raises(ValueError, match="3 attention heads cannot be divided evenly among 2 ranks"):
        segments_attention(torch.nn.Identity(), query, query, query, None, context_group=ContextGroup(size=2))
