"""Numbers that are read later are those that stood there when the copy began."""

import torch

from mftcoder.training.step import HostCopy


def test_on_a_cpu_the_numbers_are_there_without_a_copy() -> None:
    numbers = torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64)
    read = HostCopy(numbers).read()
    assert read.data_ptr() == numbers.data_ptr() and read.dtype == torch.float64


def test_what_is_read_carries_no_gradient() -> None:
    assert not HostCopy(torch.ones(2, requires_grad=True) * 2).read().requires_grad
