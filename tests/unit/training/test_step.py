"""A host copy has the values of the moment when the copy began."""

import torch

from mftcoder.training.step import HostCopy


def test_on_a_cpu_nothing_is_copied() -> None:
    numbers = torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64)
    read = HostCopy(numbers).read()
    assert read.data_ptr() == numbers.data_ptr() and read.dtype == torch.float64


def test_a_host_copy_has_no_gradient() -> None:
    assert not HostCopy(torch.ones(2, requires_grad=True) * 2).read().requires_grad
