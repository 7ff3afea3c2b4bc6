"""The sandbox as an API: results in the order of the programs, and nothing left behind."""

import psutil
import pytest

from mftcoder.errors import ExecutionError
from mftcoder.execution.run_programs import Sandbox, python_program
from mftcoder.execution.sandbox import Limits


def test_each_program_has_its_own_verdict_in_the_given_order() -> None:
    tests = "assert add(2, 3) == 5"
    answers = ["def add(a, b): return a + b", "def add(a, b): return a - b", "def add(a, b):\n    while True: pass"]
    with Sandbox(workers=2) as sandbox:
        results = sandbox.run_all([python_program(answer, tests) for answer in answers], Limits(seconds=0.3))
        alone = sandbox.run(python_program("def sum(a, b): return a + b", "assert sum(1, 1) == 2", "sum"))
    assert [result.status for result in results] == ["passed", "failed", "timeout"]
    assert alone.status == "passed" and sandbox.level in ("namespaces", "process")


def test_a_sandbox_ends_with_its_block_or_with_its_last_reference() -> None:
    before = set(psutil.Process().children(recursive=True))
    with Sandbox(workers=1) as sandbox:
        sandbox.run(python_program("x = 1", "assert x == 1"))
    forgotten = Sandbox(workers=1)
    forgotten.run(python_program("x = 1", "assert x == 1"))
    del forgotten
    left = [child for child in psutil.Process().children(recursive=True) if child not in before and child.is_running()]
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ExecutionError, match="unknown sandbox level 'jail'"):
        Sandbox("jail")
