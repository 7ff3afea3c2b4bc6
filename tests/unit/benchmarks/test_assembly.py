"""Programs made from answers within limits: a hostile answer fails alone."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mftcoder.benchmarks.assembly import assemble_all
from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.families.humanevalpack import problem_of
from mftcoder.benchmarks.problem import Benchmark, Family, Problem
from mftcoder.errors import BenchmarkError
from mftcoder.execution.pool import MAX_ANSWER_CHARS
from mftcoder.execution.sandbox import Program


@pytest.fixture(scope="module")
def mini():
    return load("mini")


def of(mini, **texts):
    return {name: (mini.problems[0], text) for name, text in texts.items()}


def test_programs_are_those_of_the_benchmark(mini):
    answers = {f"{problem.id}#0": (problem, problem.reference) for problem in mini.problems}
    assert assemble_all(mini, answers) == {key: mini.program(*answer) for key, answer in answers.items()}


def test_an_answer_that_is_too_long_is_not_parsed(mini):
    found = assemble_all(mini, of(mini, long="x" * (MAX_ANSWER_CHARS + 1), right=mini.problems[0].reference))
    assert found["long"].status == "failed" and "longer than" in found["long"].stderr
    assert isinstance(found["right"], Program)


def family(program):
    return Family(lambda *_: "", lambda *_: "", program, {"header": "none"})


def costly(problem, answer):
    """Parsing some answers takes forever, takes all memory, or is not possible."""
    if answer == "time":
        sum(range(10**12))
    elif answer == "memory":
        bytearray(1 << 40)
    elif answer == "death":
        os.kill(os.getpid(), 9)
    elif answer == "error":
        raise ValueError("what this answer brings about")
    elif answer == "mistake":
        raise BenchmarkError("the task has no tests")
    return Program("python", {"candidate": answer, "tests": problem.tests})


PROBLEM = Problem("p/0", "python", "", "assert f()", "f")


def test_an_answer_that_is_too_expensive_to_parse_fails_alone():
    answers = {name: (PROBLEM, name) for name in ("a", "time", "b", "memory", "c", "death", "d", "error", "e")}
    before = set(psutil.Process().children())
    found = assemble_all(Benchmark("x", (PROBLEM,), family(costly), ""), answers)
    assert list(found) == list(answers)
    assert {name for name, item in found.items() if isinstance(item, Program)} == set("abcde")
    assert all(found[name].status == "failed" for name in ("time", "memory", "death", "error"))
    assert found["a"].files == {"candidate": "a", "tests": "assert f()"}
    assert set(psutil.Process().children()) == before


def test_a_users_mistake_is_reported_unchanged():
    with pytest.raises(BenchmarkError.__base__, match="the task has no tests"):
        assemble_all(Benchmark("x", (PROBLEM,), family(costly), ""), {"a": (PROBLEM, "mistake")})


def test_an_error_even_with_an_empty_answer_is_a_bug():
    def broken(problem, answer):
        raise ValueError("always")

    with pytest.raises(RuntimeError, match="ValueError: always"):
        assemble_all(Benchmark("x", (PROBLEM,), family(broken), ""), {"a": (PROBLEM, "1")})


@pytest.mark.slow(reason="two seconds of CPU time for most answers")
def test_hostile_answers_use_no_more_than_their_limits():
    """Each took minutes or gigabytes to parse. They are measured in a process that has no other children."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_assembly; test_assembly.assemble_hostile()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 5 * 3
    assert kilobytes < 1 << 20


def assemble_hostile():
    """Print the CPU seconds and the most kilobytes that programs of hostile answers take."""
    mini = load("mini")
    row = {
        "task_id": "CPP/5", "entry_point": "intersperse", "canonical_solution": "", "test": "int main(){}", "docstring": "",
        "prompt": "#include<vector>\nvector<int> intersperse(vector<int> numbers, int delimeter){\n",
        "declaration": "#include<vector>\nvector<int> intersperse(vector<int> numbers, int delimeter){\n",
    }  # fmt: skip
    cpp = load_cpp(problem_of(row, "cpp", "synthesize"))
    texts = {
        "fenced": "```python\n" + "x = [" + "{1: (2, [3])}, " * 60_000 + "]\n```\n",
        "endless line": "```" + "a" * 900_000,
        "deep": "```python\nx = " + "(" * 500_000 + "\n```",
        "right": mini.problems[0].reference,
    }
    found = assemble_all(mini, of(mini, **texts)) | assemble_all(
        cpp, {"c++": (cpp.problems[0], "int intersperse(\n" * 42_000)}
    )
    assert isinstance(found["right"], Program) and len(found) == 5
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss)


def load_cpp(problem):
    from mftcoder.benchmarks.families.humanevalpack import _family

    return Benchmark("humanevalsynthesize-cpp", (problem,), _family("synthesize", "cpp"), "")
