"""The process of a run: one process per folder, a clean stop, the error for a full memory, deterministic kernels."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mftcoder.app.training import train
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError, TrainingError, reason
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


def test_a_run_folder_has_one_process_at_a_time_and_is_free_after_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with pytest.raises(KeyError), session.sole_user(folder):
        with pytest.raises(ConfigError, match="another run is writing there"), session.sole_user(folder):
            pass
        raise KeyError
    with session.sole_user(folder):
        pass


def test_a_run_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"output_dir: .*cannot be written: Not a directory"),
        session.sole_user(tmp_path / "file" / "run"),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_ctrl_c_interrupts_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = session.StopRequest()
    with stop.listening():
        assert not stop()
        signal.raise_signal(number)
        assert stop() and stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_second_sigterm_changes_nothing() -> None:
    stop = session.StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_a_process_knows_that_torchrun_restarted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not session.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not session.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert session.restarted()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"),
        RuntimeError(f"[x] {session.HOST_IS_FULL}: 9 bytes"),
    ],
    ids=["GPU", "CPU"],
)
def test_out_of_memory_is_an_error_with_remedies_in_one_line(error: RuntimeError) -> None:
    with pytest.raises(TrainingError) as raised, session.device_memory_errors():
        raise error
    assert f"out of memory: {reason(error)} Try train.gradient_checkpointing=true" in str(raised.value)
    assert raised.value.__cause__ is error and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "mat1 and mat2 shapes cannot be multiplied"])
def test_other_errors_of_torch_are_not_changed(text: str) -> None:
    error = RuntimeError(text)
    with pytest.raises(RuntimeError) as raised, session.device_memory_errors():
        raise error
    assert raised.value is error


def test_the_message_of_a_full_host_is_recognized() -> None:
    with pytest.raises(TrainingError, match="the device ran out of memory"), session.device_memory_errors():
        torch.empty(1 << 60, dtype=torch.int8)


def test_a_run_in_another_thread_leaves_signals_to_the_main_thread() -> None:
    entered: list[bool] = []

    def run() -> None:
        stop = session.StopRequest()
        with stop.listening():
            entered.append(stop())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [False] and signal.getsignal(signal.SIGINT) is before
