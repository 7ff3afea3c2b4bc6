"""Workers are forked where that is safe, and else started anew; either way they end with the process that started them."""

import signal
import subprocess
import sys

import pytest

from mftcoder.curation.pipeline import workers

START = """
import os, sys, threading, time
from types import SimpleNamespace
from mftcoder.curation.pipeline.workers import open_workers
if sys.argv[1] == "spawn":
    threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
"""
"""A process with one thread, or with two. Its jobs call a function with the steps."""


def script(context: str, rest: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START + rest, context], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_are_forked_from_a_process_with_one_thread_only(context: str) -> None:
    rest = """
with open_workers(2, {"a": 1, "b": 2}) as found:
    print(*found.map([SimpleNamespace(run=len)] * 3), *{type(one).__name__ for one in found._pool._processes.values()})
"""
    output, _ = script(context, rest).communicate()
    assert output == f"2 2 2 {context.capitalize()}Process\n"


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_end_with_a_killed_process(context: str) -> None:
    """They hold the pipe of its output open as long as they live."""
    rest = """
with open_workers(2, 300) as found:
    list(found.map([SimpleNamespace(run=abs)] * 2))
    print("ready", flush=True)
    list(found.map([SimpleNamespace(run=time.sleep)] * 2))
"""
    process = script(context, rest)
    assert process.stdout
    with process, process.stdout as output:
        assert output.readline() == "ready\n"
        process.kill()
        assert output.read() == ""
    assert process.returncode == -signal.SIGKILL


def test_a_process_does_all_jobs_itself_if_it_is_to_have_no_other() -> None:
    with workers.open_workers(1, {}) as found:
        assert found._pool is None
