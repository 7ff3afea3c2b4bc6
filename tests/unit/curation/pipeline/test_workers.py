"""Workers are forked where that is safe, and else started anew; either way they end with the process that started them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_an_interrupt_does_not_wait_for_the_jobs_under_way(context: str) -> None:
    rest = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
with open_workers(2, "import os, time; os.write(1, b'begun\\\\n'); time.sleep(100)") as found:
    list(found.map([SimpleNamespace(run=exec)] * 2))
"""
    process = script(context, rest)
    assert process.stdout
    with process, process.stdout as output:
        assert output.readline() == "begun\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert output.read() in ("", "begun\n")  # the workers hold it open
        assert process.wait() == -signal.SIGINT
    assert time.monotonic() - begun < 80


def test_a_process_does_all_jobs_itself_if_it_is_to_have_no_other() -> None:
    with workers.open_workers(1, {}) as found:
        assert found._pool is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
@pytest.mark.parametrize("command", ["stats", "decontaminate"])
def test_commands_that_need_numpy_before_their_workers_fork_them(command: str, tmp_path: Path) -> None:
    """A started process imports everything again, which took a third of the time of counting 45 MB."""
    record = {"messages": [{"role": "user", "content": "question"}, {"role": "assistant", "content": "an answer"}]}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(record)}\n" * 20)
    (tmp_path / "exam.jsonl").write_text('{"prompt": "Return the sum.", "canonical_solution": "x"}\n')
    code = """
import os, sys
os.cpu_count = lambda: 2
from mftcoder.data.records import files
files.BLOCK_BYTES = 100  # so that this is no small input
from mftcoder.cli import main
from mftcoder.curation.pipeline import workers
asked = workers.get_context
workers.get_context = lambda method: print("workers:", method, file=sys.stderr) or asked(method)
main(sys.argv[1:])
"""
    options = ["--against", tmp_path / "exam.jsonl", "--out", tmp_path / "out"] if command == "decontaminate" else []
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    arguments = [sys.executable, "-c", code, "data", command, tmp_path / "data.jsonl", *options]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "workers: fork\n" in done.stderr
