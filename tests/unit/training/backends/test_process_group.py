"""The communication of two real processes, and the environment of a launcher."""

import os

import pytest
import torch
from torch import Tensor

from mftcoder.config.schema import BackendConfig
from mftcoder.errors import ConfigError, DataError, MftError, TrainingError
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.backends.process_group import (
    ProcessGroup,
    check_context_parallel_size,
    launched_processes,
    pick_device,
)
from tests.ranks import Ask, free_port, two_ranks


def sum_of_ranks(backend: DdpBackend) -> tuple[Tensor, Tensor]:
    own = torch.tensor([1.0, 10.0]) * (backend.group.rank + 1)
    return backend.group.sum_over_ranks(own), own


def test_a_sum_is_the_same_on_every_rank_and_leaves_what_was_summed(ask: Ask) -> None:
    for rank, (summed, own) in enumerate(ask(sum_of_ranks)):
        assert summed.tolist() == [3.0, 30.0] and own.tolist() == [rank + 1, 10 * (rank + 1)]


def sum_in_place(backend: DdpBackend) -> Tensor:
    own = torch.tensor([2.0**backend.group.rank])
    backend.group.sum_in_place(own, "adding")
    return own


def test_a_sum_in_place_is_found_in_what_was_summed(ask: Ask) -> None:
    assert [own.tolist() for own in ask(sum_in_place)] == [[3.0], [3.0]]


def flag_of(backend: DdpBackend, raised: tuple[bool, bool]) -> bool:
    return backend.group.any_rank(raised[backend.group.rank])


@pytest.mark.parametrize("raised", [(False, False), (True, False), (False, True), (True, True)])
def test_a_flag_of_one_rank_is_known_to_all(ask: Ask, raised: tuple[bool, bool]) -> None:
    assert ask(flag_of, raised) == [any(raised)] * 2


def share_rank(backend: DdpBackend) -> list[str]:
    return backend.group.all_gather(f"from rank {backend.group.rank}")


def test_each_rank_gets_every_ranks_value_in_the_order_of_ranks(ask: Ask) -> None:
    assert ask(share_rank) == [["from rank 0", "from rank 1"]] * 2


def pid_of_the_first(backend: DdpBackend) -> tuple[int, int]:
    return backend.group.run_on_rank0(os.getpid), os.getpid()


def test_what_rank_0_does_is_done_once_and_known_to_all(ask: Ask) -> None:
    (on_first, first), (on_second, second) = ask(pid_of_the_first)
    assert on_first == on_second == first != second


def fail_on_first(backend: DdpBackend) -> None:
    def act() -> None:
        raise DataError(f"rank {backend.group.rank}: no such file", "and another problem")

    backend.group.run_on_rank0(act)


def test_an_error_of_rank_0_is_raised_on_all_and_reported_by_rank_0_only(ask: Ask) -> None:
    """`reported` is what keeps the other ranks from printing it again."""
    errors: list[MftError] = ask(fail_on_first)
    assert [type(error) for error in errors] == [DataError, DataError]
    assert [error.problems for error in errors] == [("rank 0: no such file", "and another problem")] * 2
    assert [error.reported for error in errors] == [False, True]


def test_ranks_continue_after_an_error_of_rank_0(ask: Ask) -> None:
    ask(fail_on_first)
    assert ask(share_rank) == [["from rank 0", "from rank 1"]] * 2


def copied_from_rank0(backend: DdpBackend) -> list[list[float]]:
    tensors = [torch.full((2,), float(backend.group.rank + 5)), torch.full((1,), float(backend.group.rank + 7))]
    backend.group.copy_from_rank0(tensors)
    return [tensor.tolist() for tensor in tensors]


def test_copying_from_rank_0_replaces_the_values_of_the_others(ask: Ask) -> None:
    assert ask(copied_from_rank0) == [[[5.0, 5.0], [7.0]]] * 2


def sum_on_the_first_only(backend: DdpBackend) -> str:
    if backend.group.rank == 0:
        try:
            backend.group.sum_over_ranks(torch.ones(1))
        except TrainingError as error:
            return str(error)
    return ""


def test_a_missing_rank_is_named_with_its_last_collective() -> None:
    """Takes the ten seconds that ranks wait for each other here."""
    with two_ranks("ddp", timeout_seconds=10) as ask:
        ask(share_rank)
        error, nothing = ask(sum_on_the_first_only)
    assert error.startswith("rank 0: 'summing losses' (number 2) failed: rank 1 has not come to it")
    assert "was last seen in 'exchanging values' (number 1)" in error and nothing == ""


def test_ranks_without_the_others_get_an_error_with_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the second that they wait."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", free_port())):
        monkeypatch.setenv(name, str(value))
    group = ProcessGroup(BackendConfig(device="cpu", init_timeout_seconds=1))
    with pytest.raises(TrainingError, match=r"rank 0: the 2 processes did not find each other.*mft train --nproc"):
        group._start()


def test_a_process_without_a_launcher_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    group = ProcessGroup(BackendConfig(device="cpu"))
    with group.joined():
        assert group.all_gather("alone") == ["alone"]
        assert group.run_on_rank0(lambda: 7) == 7
    assert not torch.distributed.is_initialized()


def test_ranks_that_share_rows_count_as_one_in_a_steps_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", "5")
    group = ProcessGroup(BackendConfig(device="cpu", context_parallel_size=2))
    assert (group.data_rank, group.data_world_size) == (2, 3)


def test_the_number_of_processes_is_that_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched_processes() == 3


def test_processes_that_do_not_fall_into_groups_are_refused_with_the_numbers() -> None:
    check_context_parallel_size(2, 4)
    with pytest.raises(ConfigError, match="3 ranks share each row, but 4 processes were started"):
        check_context_parallel_size(3, 4)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"backend\.device: cuda was chosen, but torch finds no CUDA device"):
        pick_device("cuda")


def test_more_processes_than_devices_are_refused_with_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU of its own, there are 2"):
        pick_device("auto")
