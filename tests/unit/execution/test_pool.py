"""Programs in a real pool: the status of each outcome, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
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
def test_each_outcome_has_its_status(pool, candidate, expected):
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


def test_generators_of_the_candidate_can_be_iterated(pool):
    tests = "assert list(evens(6)) == [0, 2, 4]\n"
    assert status(pool, python("def evens(n): yield from range(0, n, 2)", tests, "evens")) == "passed"


def test_tests_that_catch_everything_cannot_hide_that_the_candidate_ended(pool):
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
        folder = pool.folder
        status(pool, python("open('/tmp/left', 'w').write('x')\ndef double(x): return 2 * x"))
        assert folder.exists()
    assert not folder.exists()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ExecutionError, match="namespaces"):
        Pool("namespace")


def test_a_second_candidate_is_judged_by_its_own_answers(pool):
    """The second candidate gets the questions of the first as a script; its own replies and changes of arguments must count."""
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


def test_tests_with_other_questions_each_time_have_the_right_verdict(pool):
    tests = "import random\nfor _ in range(5):\n    n = random.randrange(10**9)\n    assert double(n) == 2 * n\n"
    with Pool("process", workers=1) as single:
        candidates = ["def double(x): return 2 * x"] * 3 + ["def double(x): return 0"]
        results = single.run([(str(n), python(code, tests)) for n, code in enumerate(candidates)], LIMITS)
        assert [result.status for _, result in results] == ["passed"] * 3 + ["failed"]


def test_a_test_that_continues_after_an_exception_sees_it_where_it_was_raised(pool):
    tests = "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass\nassert f(1) == 1\n"
    with Pool("process", workers=1) as single:
        results = single.run([(str(n), python("def f(x): return 1 // x", tests, "f")) for n in range(3)], LIMITS)
        assert [result.status for _, result in results] == ["passed"] * 3


def test_memory_that_a_comparison_needs_is_bounded(pool):
    lazy = python("def f(x): return range(10**9)", "assert list(f(1)) == [1]\n", "f")
    assert status(pool, lazy) == "out_of_memory"


@pytest.mark.slow(reason="each takes the judge's three seconds of CPU time")
@pytest.mark.parametrize(
    ("candidate", "tests"),
    [
        ("def f(x): return [n * ((1 << 61) - 1) for n in range(60_000)]", "assert set(f(1)) == {1}\n"),
        ("def f(x): return range(10**13)", "assert sum(f(1)) == 1\n"),
        ("import decimal\ndef f(x): return decimal.Decimal('1e99999999')", "assert int(f(1)) == 1\n"),
    ],
    ids=["equal hashes", "endless sum", "huge number"],
)
def test_a_comparison_that_takes_too_much_cpu_time_is_a_timeout_of_the_answer(pool, candidate, tests):
    """Each is one step written in C, which no signal handler stops. Takes the judge's three seconds of CPU time."""
    assert status(pool, python(candidate, tests, "f")) == "timeout"
    assert status(pool, python("def double(x): return 2 * x")) == "passed"


def test_memory_left_by_one_program_is_not_counted_for_the_next():
    kept = "import sys\nsys.kept = b'x' * (600 << 20)\nassert f(1) == 2\n"
    with Pool("process", workers=1) as single:
        large = Limits(seconds=5, memory_mb=700)
        assert status(single, python("def f(x): return 2 * x", kept, "f"), large) == "passed"
        pids = [worker.process.pid for worker in single._workers]
        assert status(single, python("def f(x): return 2 * x", kept, "f"), large) == "passed"
        assert not set(pids) & {worker.process.pid for worker in single._workers}


def test_right_answers_that_are_large_together_pass_again_and_again():
    """The second one must reply to all questions at once, which is more than a message may hold."""
    tests = "for n in (3_000_000, 3_000_001, 3_000_002):\n    assert len(f(n)) == n\n"
    with Pool("process", workers=1) as single:
        candidates = ["def f(n): return 'x' * n", "def f(n): return n * 'x'", "def f(n): return ''"]
        results = single.run([(str(n), python(code, tests, "f")) for n, code in enumerate(candidates)], LIMITS)
        assert [result.status for _, result in results] == ["passed", "passed", "failed"]


def test_large_answers_after_a_small_one_have_the_right_verdict():
    """A script from a first answer with small results must not make a later answer with large results fail."""
    tests = "assert len(f(3)) >= 3\nassert len(f(4)) >= 4\nassert len(f(5)) >= 5\n"
    with Pool("process", workers=1) as single:
        candidates = ["def f(n): return 'x' * n", "def f(n): return 'x' * 3_500_000"]
        results = single.run([(str(n), python(code, tests, "f")) for n, code in enumerate(candidates)], LIMITS)
        assert [result.status for _, result in results] == ["passed", "passed"]


def test_an_answer_of_many_megabytes_fails_and_no_other_does(pool):
    huge = "# " + "\x00" * (70 << 20) + "\ndef double(x): return 2 * x"
    programs = [("huge", python(huge)), ("honest", python("def double(x): return 2 * x"))]
    assert {key: result.status for key, result in pool.run(programs, LIMITS)} == {"huge": "failed", "honest": "passed"}


def test_an_answer_that_breaks_its_sandbox_each_time_has_failed():
    """These tests end their own worker if there is an answer; with an empty answer they just fail."""
    tests = "import os\ndouble(2)\nos._exit(1)\n"
    with Pool("process", workers=2) as pool:
        programs = [(str(n), python(f"def double(x): return {n} * x", tests if n == 2 else TESTS)) for n in range(5)]
        results = dict(pool.run(programs, LIMITS))
    assert {key: result.status for key, result in results.items()} == dict.fromkeys("01234", "failed")
    assert "the sandbox failed each time with this answer" in results["2"].stderr


def test_tests_that_break_the_sandbox_without_an_answer_are_a_sandbox_error():
    with Pool("process", workers=2) as pool:
        programs = [("a", python("def double(x): return 2 * x", "import os\nos._exit(1)\n"))]
        assert [result.status for _, result in pool.run(programs, LIMITS)] == ["sandbox_error"]


def test_an_idle_worker_that_ends_costs_no_program():
    with Pool("process", workers=2) as pool:
        slow = python("import time\ndef double(x): time.sleep(1.5); return 2 * x")
        programs = [("quick", python("def double(x): return 2 * x")), ("slow", slow)]
        results = pool.run(programs, Limits(seconds=5, memory_mb=256))
        assert next(results)[0] == "quick"
        [idle] = [worker for worker in pool._workers if not worker.job]
        psutil.Process(idle.process.pid).kill()
        assert [result.status for _, result in results] == ["passed"]


def test_different_programs_have_different_fingerprints():
    prints = {python(f"def double(x): return {n}").fingerprint for n in range(100)}
    assert len(prints) == 100 and all(len(text) == 64 for text in prints)


def test_a_killed_pool_leaves_no_folder_and_no_process():
    script = (
        "import sys\nfrom mftcoder.execution.pool import Pool\nfrom mftcoder.execution.sandbox import Limits, Program\n"
        "files = {'candidate': 'while True: pass', 'tests': 'f()', 'entry_point': 'f'}\n"
        "pool = Pool('process', workers=2)\nprint(pool.folder, flush=True)\n"
        "list(pool.run([(str(n), Program('python', files)) for n in range(2)], Limits(seconds=60)))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    folder = Path(run.stdout.readline().strip())
    while not list(folder.glob("2/run")):  # both slots are at work
        time.sleep(0.02)
    children = psutil.Process(run.pid).children(recursive=True)
    assert folder.is_dir() and children
    run.send_signal(signal.SIGKILL)
    run.communicate()
    deadline = time.monotonic() + 300
    while (folder.exists() or any(child.is_running() for child in children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert not [child for child in children if child.is_running()]


def test_a_pool_removes_the_folder_of_a_dead_pool_and_keeps_that_of_a_live_one():
    left = Path(tempfile.mkdtemp(prefix="mft-pool-"))
    (left / "1/run").mkdir(parents=True)
    with Pool("process", workers=1) as live:
        for folder in (left, live.folder):
            os.utime(folder, (0, 0))
        with Pool("process", workers=1):
            assert not left.exists()
            assert live.folder.exists()


def test_a_pool_removes_folders_that_are_too_deep_for_recursion():
    deep = "import os\nos.chdir(os.environ['TMPDIR'])\nfor _ in range(1100):\n    os.mkdir('y' * 200); os.chdir('y' * 200)\n"
    with Pool("process", workers=1) as pool:
        results = pool.run(
            [("deep", python(deep)), ("honest", python("def double(x): return 2 * x"))], Limits(seconds=5)
        )
        assert {key: result.status for key, result in results} == {"deep": "failed", "honest": "passed"}
    assert not pool.folder.exists()


def test_a_failure_in_a_full_temporary_folder_is_no_verdict(tmp_path):
    """A compiler without free space must not make a right answer wrong."""
    script = (
        "from mftcoder.execution.pool import Pool\nfrom mftcoder.execution.sandbox import Limits, Program\n"
        "def program(candidate): return Program('python', {'candidate': candidate, 'tests': 'assert f()', 'entry_point': 'f'})\n"
        "with Pool('process', workers=1) as pool:\n"
        "    programs = [('right', program('def f(): return 1')), ('wrong', program('def f(): return 0'))]\n"
        "    print({key: result.status for key, result in pool.run(programs, Limits(seconds=1))})\n"
    )
    (tmp_path / "full").mkdir()
    mount = f'mount -t tmpfs -o size=20m none {tmp_path}/full && TMPDIR={tmp_path}/full exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.strip() == "{'right': 'passed', 'wrong': 'sandbox_error'}", done.stderr
