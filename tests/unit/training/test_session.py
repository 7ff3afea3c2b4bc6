"""What surrounds a run: an answer to a full memory, and kernels that repeat themselves where that is asked for."""

import os
from collections.abc import Iterator

import pytest
import torch

from mftcoder.app import train
from mftcoder.config.schema import RunConfig
from mftcoder.training import session


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("as_before")
def test_deterministic_kernels_are_chosen_for_all_that_a_gpu_runs() -> None:
    session.compute_deterministically()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_run_that_asks_for_them_chooses_them_first_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class ChosenError(Exception):
        pass

    def choose() -> None:
        raise ChosenError

    monkeypatch.setattr(train, "compute_deterministically", choose)
    config = {"model": "no/where", "tasks": {"a": "no/where"}, "output_dir": "no/where"}
    with pytest.raises(ChosenError):
        train.train(RunConfig.model_validate({**config, "train": {"deterministic": True}}))
