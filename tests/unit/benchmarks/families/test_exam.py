"""An exam of the user's own code: its prompts, the forms of an answer, and what passes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mftcoder.benchmarks.catalogue import expand, load
from mftcoder.benchmarks.families.exam import KINDS, benchmark_of, literal_asserts, solution, worthless
from mftcoder.benchmarks.problem import Asking, Benchmark, Problem
from mftcoder.errors import BenchmarkError
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import ExecutionResult, Limits

HEADER = "def clip(value, low, high):\n"
DOCSTRING = '    """Return value moved into the range from low to high."""\n'
BODY = "    if value < low:\n        return low\n    return min(value, LARGEST, high)\n"
FUNCTION = HEADER + DOCSTRING + BODY
ASSERTS = "assert clip(7, 0, 5) == 5\nassert clip(-1, 0, 5) == 0\nassert clip(3, 0, 5) == 3\n"
CONTEXT = "LARGEST = 100\n"
BUGGY = FUNCTION.replace("<", ">")


def row(kind: str) -> dict[str, Any]:
    prompt = {"complete": HEADER + DOCSTRING + "    if value < low:\n", "write": HEADER + DOCSTRING, "repair": HEADER}
    code = prompt.get(kind, FUNCTION)
    return {
        "task_id": f"{kind}/m.py:1",
        "kind": kind,
        "instruction": f"Please {kind}.\n\n```python\n{code}```",
        "prompt": code,
        "entry_point": "clip",
        "canonical_solution": ASSERTS if kind == "test" else FUNCTION[len(code) :],
        "test": "" if kind == "test" else ASSERTS,
        "context": CONTEXT,
        "buggy": BUGGY,
        "mutants": [BUGGY, FUNCTION.replace("LARGEST, high)", "LARGEST, low)")],
    }


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool("process", workers=1) as pool:
        yield pool


def exam(kind: str) -> tuple[Benchmark, Problem]:
    benchmark = benchmark_of(kind, [row(kind)], "exam.jsonl")
    return benchmark, benchmark.problems[0]


def run(pool: Pool, kind: str, answer: str) -> ExecutionResult:
    benchmark, problem = exam(kind)
    [(_, result)] = pool.run([("a", benchmark.program(problem, answer))], Limits(seconds=2))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_own_code_passes_and_worthless_answers_fail(pool: Pool, kind: str) -> None:
    _, problem = exam(kind)
    assert run(pool, kind, solution(problem)).status == "passed"
    assert "" in worthless(problem)
    assert [run(pool, kind, answer).status for answer in worthless(problem)] == ["failed"] * len(worthless(problem))


@pytest.mark.parametrize("kind", ["complete", "write", "repair"])
@pytest.mark.parametrize("form", ["{whole}", "```python\n{whole}```", "Here you are:\n```\n{whole}```\nBye.", "{rest}"])
def test_a_function_may_be_given_whole_fenced_or_as_what_was_missing(pool: Pool, kind: str, form: str) -> None:
    _, problem = exam(kind)
    answer = form.format(whole=FUNCTION, rest=problem.reference)
    assert run(pool, kind, answer).status == "passed"


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ("assert clip(7, 0, 5) == 5", "passed", ""),
        ("```python\nassert clip(7, 0, 5) == 5\n```", "passed", ""),
        (f"import pytest\n\n{FUNCTION}\n\ndef test_clip():\n    assert 5 == clip(7, high=5, low=0)\n", "passed", ""),
        ("assert clip(7, 0, 5) == 5 and not clip(-1, 0, 5), 'a message'", "passed", ""),
        ("assert clip(7, 0, 5) == 4", "failed", "AssertionError: "),
        ("assert clip(7, 0, 5) == 5\nassert clip(1, 2) == 1", "failed", "TypeError: "),
        ("assert clip(3, 3, 3) == 3", "failed", "holds for every mutant as well"),
        ("assert clip(7, 0, 5) in (5,)", "passed", ""),
        ("assert True", "failed", "no assert in the answer"),
        ("assert clip(7, 0, 5) == 5\nassert open('/etc/passwd')", "failed", "no assert in the answer"),
        ("x = 7\nassert clip(x, 0, 5) == 5", "failed", "no assert in the answer"),
        ("for n in (1, 2):\n    assert clip(n, 0, 5) == n", "failed", "no assert in the answer"),
        ("assert clip(7, 0, 5) == clip.__globals__", "failed", "no assert in the answer"),
        ("assert clip(7, 0, 5) == 'x' * 10**9", "failed", "no assert in the answer"),
        ("Test it well.", "failed", "no assert in the answer"),
        ("assert clip(" + "-" * 5000 + "1, 0, 5) == 0", "failed", "no assert in the answer"),
        ("assert clip(7, 0, 5) == 5" + " " * 20_000, "failed", "no assert in the answer"),
    ],
)
def test_a_test_must_hold_for_the_function_and_fail_for_a_mutant(
    pool: Pool, answer: str, status: str, reason: str
) -> None:
    result = run(pool, "test", answer)
    assert (result.status, reason in result.stderr) == (status, True), result


def test_only_calls_with_literals_of_a_written_test_run() -> None:
    """The accepted part of the answer runs in the judge, beside the expected values."""
    hostile = "import os\nos.abort()\nassert f(1) == 2\n\ndef test_it():\n    __import__('os').abort()\n    assert f(f(2)) is None\n"
    assert literal_asserts(hostile, "f") == ["assert f(1) == 2", "assert f(f(2)) is None"]


def test_chat_mode_has_the_prompt_of_training_and_completion_mode_the_code() -> None:
    for kind in KINDS:
        benchmark, problem = exam(kind)
        assert benchmark.prompt(problem, Asking("chat")) == problem.fields["instruction"]
    benchmark, problem = exam("write")
    assert benchmark.prompt(problem, Asking()) == (HEADER + DOCSTRING).strip()
    benchmark, problem = exam("test")
    assert benchmark.prompt(problem, Asking()).endswith("assert clip(")
    assert benchmark.extract(problem, "7, 0, 5) == 5\n\n\ndef more", Asking()) == "assert clip(7, 0, 5) == 5\n\n"


def test_a_chat_ends_with_its_first_closed_block() -> None:
    benchmark, problem = exam("write")
    (word,) = benchmark.stop(problem, Asking("chat"))
    text = f"Here:\n\n```python\n{FUNCTION}```\n\nI hope so.\n```python\nmore\n```"
    assert benchmark.extract(problem, text.partition(word)[0], Asking("chat")) == FUNCTION.rstrip("\n")
    assert benchmark.stop(problem, Asking()) == problem.stop


def test_it_is_loaded_from_its_folder_kind_by_kind(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row(kind)) + "\n" for kind in KINDS))
    assert expand(["exam"]) == [f"exam-{kind}" for kind in KINDS]
    for task in expand(["exam"]):
        benchmark = load(task, tmp_path)
        assert [problem.id for problem in benchmark.problems] == [f"{task.removeprefix('exam-')}/m.py:1"]
        assert benchmark.source.startswith("exam.jsonl (sha256 ")


def test_a_file_that_is_not_an_exam_is_an_error_with_the_missing_fields(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text(json.dumps({"task_id": "a", "kind": "write"}) + "\n")
    with pytest.raises(BenchmarkError, match="problem 1 lacks instruction, prompt"):
        load("exam-write", tmp_path)
    (tmp_path / "exam.jsonl").write_text(json.dumps(row("write")) + "\n")
    with pytest.raises(BenchmarkError, match="has no problem of kind 'test'"):
        load("exam-test", tmp_path)
    with pytest.raises(BenchmarkError, match="give the folder that holds"):
        load("exam-test", None)
