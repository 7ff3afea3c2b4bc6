"""The sandbox as an API: results in the order of the programs, and nothing left behind."""

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from mftcoder.errors import ExecutionError
from mftcoder.execution.run_programs import Sandbox, python_program
from mftcoder.execution.sandbox import Limits, Program


def test_each_program_has_its_own_verdict_in_the_given_order() -> None:
    tests = "assert add(2, 3) == 5"
    answers = ["def add(a, b): return a + b", "def add(a, b): return a - b", "def add(a, b):\n    while True: pass"]
    with Sandbox(workers=2) as sandbox:
        results = sandbox.run_all([python_program(answer, tests) for answer in answers], Limits(seconds=1))
        alone = sandbox.run(python_program("def sum(a, b): return a + b", "assert sum(1, 1) == 2", "sum"))
    assert [result.status for result in results] == ["passed", "failed", "timeout"]
    assert alone.status == "passed" and sandbox.level in ("namespaces", "process")


def test_a_sandbox_ends_with_its_block_or_with_its_last_reference() -> None:
    before = set(psutil.Process().children(recursive=True))
    with Sandbox(workers=1) as sandbox:
        sandbox.run(python_program("def x(): return 1", "assert x() == 1"))
    forgotten = Sandbox(workers=1)
    forgotten.run(python_program("def x(): return 1", "assert x() == 1"))
    del forgotten
    _, left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=60)
    assert left == []


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ExecutionError, match="unknown sandbox level 'jail'"):
        Sandbox("jail")


RIGHT = python_program("def one(): return 1", "assert one() == 1")
WRONG = python_program("def one(): return 2", "assert one() == 1")
SLOW = python_program("import time\ndef one():\n    time.sleep(1)\n    return 1", "assert one() == 1")


def test_threads_that_share_a_sandbox_get_their_own_results() -> None:
    with Sandbox(workers=2) as sandbox, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(sandbox.run, [SLOW, WRONG] * 2))
    assert [result.status for result in results] == ["passed", "failed"] * 2


def test_a_run_after_an_interrupted_one_gets_no_result_of_it() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with Sandbox(workers=2) as sandbox:
            sandbox.run(RIGHT)
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                sandbox.run(SLOW)
            assert sandbox.run(WRONG).status == "failed"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_closed_sandbox_says_so() -> None:
    with Sandbox(workers=1) as sandbox:
        pass
    with pytest.raises(ExecutionError, match="sandbox: is closed; open a new one"):
        sandbox.run(RIGHT)


def test_what_is_no_list_of_programs_is_an_error() -> None:
    wrong: list[Any] = [
        None,
        RIGHT,
        "print(1)",
        [RIGHT, None],
        [Program("java", {"candidate": ""})],
        [Program("python", {})],
    ]
    with Sandbox(workers=1) as sandbox:
        for programs in wrong:
            with pytest.raises(ExecutionError, match="programs"):
                sandbox.run_all(programs)
        with pytest.raises(ExecutionError, match="limits: is a int"):
            sandbox.run(RIGHT, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None])
def test_a_limit_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(ExecutionError, match="limits: seconds: must be a number above 0"):
        Limits(seconds=value)


@pytest.mark.parametrize("value", [0, -1, "2"])
def test_a_number_of_workers_is_at_least_1(value: Any) -> None:
    with pytest.raises(ExecutionError, match="workers: must be a whole number of at least 1"):
        Sandbox(workers=value)


def test_a_program_without_tests_is_refused_since_any_answer_would_pass() -> None:
    with pytest.raises(ExecutionError, match="tests: are empty"):
        python_program("def one(): return 1", " ")
    with pytest.raises(ExecutionError, match="answer: must be text, not NoneType"):
        python_program(None, "assert True")  # type: ignore[arg-type]
