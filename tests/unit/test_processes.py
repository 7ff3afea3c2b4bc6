"""Child processes end with their parent and do not run the user's script again."""

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import pytest

from mftcoder.processes import (
    follow_parent,
    following_environment,
    has_one_thread,
    let_waiting_threads_sleep,
    main_module_hidden,
)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """The signals that this process sends to itself."""
    sent: list[signal.Signals] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


CHILD = """
import os, signal, sys
from mftcoder.processes import follow_parent
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
signal.alarm(60)  # a child that nobody ends must not hang the tests
follow_parent()
print("ready", "MFTCODER_PARENT" in os.environ, flush=True)
signal.pause()
"""
PARENT = """
import subprocess, sys
from mftcoder.processes import following_environment
subprocess.run([sys.executable, "-c", sys.argv[1]], env=following_environment())
"""


def test_a_command_that_follows_gets_sigterm_when_its_parent_is_killed() -> None:
    """The pipe is read to its end, which comes when both processes have ended."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent, parent.stdout as lines:
        first = lines.readline()
        parent.kill()
        assert (first, lines.read()) == ("ready False\n", "saved\n")  # False: what it starts itself has another parent


def test_a_parent_that_has_already_ended_is_noticed(
    monkeypatch: pytest.MonkeyPatch, signals: list[signal.Signals], own_prctl: None
) -> None:
    monkeypatch.setenv("MFTCODER_PARENT", "1" if os.getppid() != 1 else "2")
    follow_parent()
    assert signals == [signal.SIGTERM]


@pytest.fixture
def own_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests does not ask the kernel for a signal."""

    class Library:
        prctl: Callable[..., int] = staticmethod(lambda *_: 0)

    monkeypatch.setattr("ctypes.CDLL", lambda _: Library)


def test_a_command_without_that_environment_does_not_follow(
    monkeypatch: pytest.MonkeyPatch, signals: list[signal.Signals]
) -> None:
    monkeypatch.delenv("MFTCODER_PARENT", raising=False)
    monkeypatch.setattr("ctypes.CDLL", None)  # asking the kernel would be an error
    follow_parent()
    assert signals == []


def test_the_environment_names_this_process_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    environment = following_environment()
    assert environment["MFTCODER_PARENT"] == str(os.getpid()) and environment["KEPT"] == "1"
    assert "MFTCODER_PARENT" not in os.environ


def test_a_process_with_another_thread_is_told_apart() -> None:
    goes_on = threading.Event()
    thread = threading.Thread(target=goes_on.wait)
    thread.start()
    assert not has_one_thread()
    goes_on.set()
    thread.join()
    code = "from mftcoder.processes import has_one_thread; print(has_one_thread())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sys.platform == 'linux'}\n"


def test_the_main_module_is_back_after_the_block_however_it_ends() -> None:
    main = sys.modules["__main__"]
    with pytest.raises(KeyError), main_module_hidden():
        hidden = sys.modules["__main__"]
        assert hidden is not main and isinstance(hidden, ModuleType) and not hasattr(hidden, "__file__")
        raise KeyError
    assert sys.modules["__main__"] is main


def test_waiting_threads_sleep_unless_the_environment_says_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    let_waiting_threads_sleep()
    assert os.environ == {"GOMP_SPINCOUNT": "1000"}
    for chosen in ({"GOMP_SPINCOUNT": "30000"}, {"OMP_WAIT_POLICY": "active"}):
        monkeypatch.setattr(os, "environ", dict(chosen))
        let_waiting_threads_sleep()
        assert os.environ == chosen


ALLOCATES = """
import ctypes, resource, threading
from mftcoder.processes import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def forward():
    blocks = [libc.malloc(size << 20) for size in (1, 2, 3, 9, 25)]
    for block, size in zip(blocks, (1, 2, 3, 9, 25)):
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)

def work():
    forward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        forward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = [sys.executable, "-c", ALLOCATES]
    faults = int(subprocess.run(run, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    assert faults < 100  # without the setting 10,240, a tenth of the pages that are written
