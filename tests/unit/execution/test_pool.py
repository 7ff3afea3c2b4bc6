"""Programs in a real pool: what each way to end is called, and what is left behind."""

from pathlib import Path

import psutil
import pytest

from mftcoder.errors import ExecutionError
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits, Program

LIMITS = Limits(seconds=1.0, memory_mb=256)
TESTS = "def check(f):\n    assert f(2) == 4\n    assert f(3) == 6\ncheck(double)\n"


def python(candidate, tests=TESTS, entry_point="double"):
    return Program("python", {"candidate": candidate, "tests": tests, "entry_point": entry_point})


@pytest.fixture(scope="module")
def pool():
    with Pool("process", workers=2) as pool:
        yield pool


def status(pool, program, limits=LIMITS):
    [(key, result)] = list(pool.run([("a", program)], limits))
    assert key == "a"
    return result.status


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        ("def double(x): return 2 * x", "passed"),
        ("def double(x): return x", "failed"),
        ("def double(x): retur", "failed"),
        ("def triple(x): return 2 * x", "failed"),
        ("", "failed"),
        ("while True: pass", "timeout"),
        ("def double(x):\n    while True: pass", "timeout"),
        ("import time\ndef double(x): time.sleep(9)", "timeout"),
        ("def double(x): return bytearray(1 << 30)", "out_of_memory"),
        ("def double(x):\n    print('x' * 10_000_000)\n    return 2 * x", "passed"),
        ("import sys\ndef double(x): sys.exit(0)", "failed"),
        ("import os\ndef double(x): os._exit(0)", "failed"),
        ("def double(x): return double(x)", "failed"),
        ("def double(x): return 'x' * (9 << 20)", "failed"),
    ],
)
def test_each_way_to_end_has_its_name(pool, candidate, expected):
    [(_, result)] = list(pool.run([("a", python(candidate))], LIMITS))
    assert result.status == expected, result


def test_many_programs_keep_their_keys(pool):
    programs = [(str(n), python(f"def double(x): return {2 if n % 3 else 1} * x")) for n in range(40)]
    results = dict(pool.run(programs, LIMITS))
    assert {key for key, result in results.items() if result.status == "passed"} == {str(n) for n in range(40) if n % 3}


def test_tests_may_change_their_arguments_through_the_candidate(pool):
    tests = "xs = [3, 1, 2]\nsort(xs)\nassert xs == [1, 2, 3]\n"
    assert status(pool, python("def sort(xs): xs.sort()", tests, "sort")) == "passed"


def test_tests_may_build_objects_of_the_candidates_classes(pool):
    candidate = "class Node:\n    def __init__(self, v): self.v = v; self.next = None\ndef length(n): return 1 + length(n.next) if n else 0"
    tests = "n = Node(1)\nn.next = Node(2)\nassert n.next.v == 2\nassert length(n) == 2\n"
    assert status(pool, python(candidate, tests, "length")) == "passed"


def test_a_builtin_name_can_be_the_entry_point(pool):
    assert status(pool, python("def sum(a, b): return a * b", "assert sum(2, 3) == 6\n", "sum")) == "passed"


def test_generators_of_the_candidate_can_be_read(pool):
    tests = "assert list(evens(6)) == [0, 2, 4]\n"
    assert status(pool, python("def evens(n): yield from range(0, n, 2)", tests, "evens")) == "passed"


def test_tests_that_swallow_everything_do_not_swallow_the_candidates_death(pool):
    tests = "try:\n    f()\nexcept BaseException:\n    pass\n"
    assert status(pool, python("import os\ndef f(): os._exit(0)", tests, "f")) == "failed"
    assert status(pool, python("def f(): raise ValueError", tests, "f")) == "passed"


def test_a_worker_that_dies_is_replaced_and_its_program_run_again():
    with Pool("process", workers=1) as pool:
        results = pool.run(
            [(str(n), python("import time\ndef double(x): time.sleep(0.1); return 2 * x")) for n in range(4)], LIMITS
        )
        first = next(results)
        psutil.Process(pool._workers[0].process.pid).kill()
        statuses = [first[1].status, *(result.status for _, result in results)]
    assert statuses == ["passed"] * 4


def test_a_pool_leaves_no_process_and_no_file_behind():
    before = set(psutil.Process().children(recursive=True))
    with Pool("process", workers=2) as pool:
        folder = Path(pool._folder.name)
        status(pool, python("open('/tmp/left', 'w').write('x')\ndef double(x): return 2 * x"))
        assert folder.exists()
    assert not folder.exists()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ExecutionError, match="namespaces"):
        Pool("namespace")


def test_a_second_candidate_is_judged_by_its_own_answers(pool):
    """The questions of the first are sent along with the second; its answers and its changes of arguments must count."""
    tests = "xs = [3, 1, 2]\nsort(xs)\nassert xs == [1, 2, 3]\nassert sort([2, 1]) is None\n"
    candidates = [
        "def sort(xs): xs.sort()",
        "def sort(xs): xs.reverse()",
        "def sort(xs): xs.sort(); return xs",
        "def sort(xs): xs.sort()",
    ]
    with Pool("process", workers=1) as single:
        results = single.run([(str(n), python(code, tests, "sort")) for n, code in enumerate(candidates)], LIMITS)
        assert [result.status for _, result in results] == ["passed", "failed", "failed", "passed"]


def test_tests_that_ask_otherwise_each_time_are_judged_rightly(pool):
    tests = "import random\nfor _ in range(5):\n    n = random.randrange(10**9)\n    assert double(n) == 2 * n\n"
    with Pool("process", workers=1) as single:
        candidates = ["def double(x): return 2 * x"] * 3 + ["def double(x): return 0"]
        results = single.run([(str(n), python(code, tests)) for n, code in enumerate(candidates)], LIMITS)
        assert [result.status for _, result in results] == ["passed"] * 3 + ["failed"]


def test_a_test_that_asks_on_after_a_failed_answer_sees_the_exception_where_it_happened(pool):
    tests = "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass\nassert f(1) == 1\n"
    with Pool("process", workers=1) as single:
        results = single.run([(str(n), python("def f(x): return 1 // x", tests, "f")) for n in range(3)], LIMITS)
        assert [result.status for _, result in results] == ["passed"] * 3
