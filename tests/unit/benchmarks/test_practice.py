"""Practice and exam stay apart, bad problems are named, and of the passing answers the right ones are kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mftcoder.benchmarks.families.exam import benchmark_of, solution
from mftcoder.benchmarks.practice import (
    Rollout,
    apart,
    closed,
    divided,
    keep,
    lines_of,
    read_problems,
    round_of,
    signal,
)
from mftcoder.benchmarks.problem import Problem
from mftcoder.benchmarks.rewards import single_tests
from mftcoder.errors import BenchmarkError
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits

KINDS = ("complete", "write", "repair", "test")


def problem(name: str, module: str, kind: str = "write", **fields: Any) -> dict[str, Any]:
    """A problem about a function of this name."""
    return {
        "task_id": f"{kind}/{module}:{name}",
        "kind": kind,
        "instruction": f"Write {name}.",
        "prompt": f"def {name}(x):\n",
        "entry_point": name,
        "canonical_solution": "    return x\n",
        "test": f"assert {name}(1) == 1\n",
        "context": "",
        "mutants": ["def f(x): pass"],
        "source": f"{module}:{name}",
        **fields,
    }


def written(folder: Path, records: list[Any]) -> Path:
    (folder / "exam.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def rollout(sample: int, answer: str, *, passed: bool = True, cut: bool = False, name: str = "a") -> Rollout:
    return Rollout(name, sample, f"```python\n{answer}", answer, cut, passed)


def test_all_problems_of_a_module_are_on_one_side() -> None:
    records = [
        problem(f"f{m}{n}", f"m{m}.py", kind) for m in range(8) for n in range(3) for kind in ("write", "complete")
    ]
    found = divided(records, 0.5, seed=0)
    modules = [{record["source"].partition(":")[0] for record in side} for side in (found.practice, found.exam)]
    assert modules[0].isdisjoint(modules[1]) and len(modules[0] | modules[1]) == 8
    assert len(found.practice) == len(found.exam) == 24
    assert divided(records, 0.5, seed=0) == found


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_no_side_is_empty_whatever_the_share(share: float) -> None:
    found = divided([problem("f", "a.py"), problem("g", "b.py")], share, seed=0)
    assert len(found.practice) == len(found.exam) == 1


def test_one_module_cannot_be_divided() -> None:
    with pytest.raises(BenchmarkError, match="all problems are of one module"):
        divided([problem("f", "a.py"), problem("g", "a.py")], 0.5, seed=0)


@pytest.mark.parametrize(
    "copy",
    [
        problem("f", "a.py", test="assert f(2) == 2\n", canonical_solution="    return  +x\n"),  # the id
        problem("f", "copy.py", canonical_solution="    return +x\n"),  # the tests
        problem("f", "copy.py", "repair", test="assert f(5) == 5\n"),  # the function
    ],
    ids=["id", "tests", "function"],
)
def test_a_practice_problem_that_is_in_the_exam_is_left_out_and_counted(copy: dict[str, Any]) -> None:
    found = apart([copy, problem("g", "c.py")], [problem("f", "a.py")])
    assert [record["entry_point"] for record in found.practice] == ["g"]
    assert found.shared == 1


def test_practice_that_is_all_in_the_exam_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="must not train on what it is scored on"):
        apart([problem("f", "a.py")], [problem("f", "a.py")])


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    wrong = [
        problem("f", "a.py", test=" "),
        problem("g", "b.py", "translate"),
        problem("i", "d.py", test="assert i(1) ="),
        problem("h", "c.py"),
        problem("h", "c.py"),
    ]
    with pytest.raises(BenchmarkError) as found:
        read_problems(written(tmp_path, wrong), KINDS)
    assert [line.partition("exam.jsonl: ")[2] for line in found.value.problems] == [
        "problem 1: has no tests, so an answer cannot be judged",
        "problem 2: kind 'translate' is unknown. Known: complete, write, repair, test",
        "problem 3: its tests are not valid Python",
        "2 problems have the task_id 'write/c.py:h'",
    ]


def humaneval_record(name: str, **fields: Any) -> dict[str, Any]:
    """A problem in HumanEval's form whose prompt brings a helper and an import."""
    return {
        "task_id": f"HumanEval/{name}",
        "prompt": f'import math\n\n\ndef one() -> int:\n    return math.floor(1.5)\n\n\ndef {name}(x):\n    """Add 1."""\n',
        "entry_point": name,
        "canonical_solution": "    return x + one()\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == one() + 2\n",
        **fields,
    }


def statuses(pool: Pool, records: Sequence[Any], answer: Callable[[Problem], str]) -> list[str]:
    benchmark = benchmark_of("complete", records, "exam.jsonl")
    programs = [(problem.id, benchmark.program(problem, answer(problem))) for problem in benchmark.problems]
    found = dict(pool.run(programs, Limits(seconds=5, memory_mb=512)))
    return [found[problem.id].status for problem in benchmark.problems]


def test_problems_in_humanevals_form_are_taken_with_their_tests(tmp_path: Path) -> None:
    """In the real sandbox: their own solutions pass all tests and each test alone; the prompt alone and another result fail."""
    records, origin = read_problems(written(tmp_path, [humaneval_record("add"), humaneval_record("plus")]), KINDS)
    assert [record["kind"] for record in records] == ["complete", "complete"] and origin.startswith("exam.jsonl")
    assert "Complete the following Python function" in records[0]["instruction"]
    alone = [part for record in records for part in single_tests(record)]
    with Pool("process", workers=1) as pool:
        assert statuses(pool, [*records, *alone], solution) == ["passed"] * 6
        assert (
            statuses(
                pool, records, lambda problem: f"```python\ndef {problem.entry_point}(x):\n    return x + one()\n```"
            )
            == ["passed"] * 2
        )
        assert statuses(pool, records, lambda problem: problem.prompt + "    return x\n") == ["failed"] * 2


def test_the_small_benchmark_of_the_package_can_be_practised_by_its_name() -> None:
    records, origin = read_problems(Path("mini"), KINDS)
    found = divided(records, 0.5, seed=0)
    assert origin.startswith("mini.jsonl") and len(records) == 50 and len(found.practice) == len(found.exam) == 25
    with Pool("process", workers=1) as pool:
        assert set(statuses(pool, records, solution)) == {"passed"}


def test_another_benchmark_and_a_file_of_another_form_are_refused_with_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="humaneval: is the name of a benchmark, and only mini comes with the"):
        read_problems(Path("humaneval"), KINDS)
    mbpp = {"task_id": 1, "text": "Add.", "code": "def add(): ...", "test_list": ["assert add() == 1"]}
    with pytest.raises(BenchmarkError, match=r"problem 1: has no kind, as .* and lacks prompt, entry_point, canon"):
        read_problems(written(tmp_path, [mbpp]), KINDS)
    with pytest.raises(
        BenchmarkError, match=r"problem 1: has no kind, as .* and lacks prompt, canonical_solution of Hu"
    ):
        read_problems(written(tmp_path, [humaneval_record("add", prompt=None, canonical_solution=None)]), KINDS)
    with pytest.raises(BenchmarkError, match="problem 1: its tests are not valid Python"):
        read_problems(written(tmp_path, [humaneval_record("add", test="public class Main {")]), KINDS)


@pytest.mark.parametrize("field", ["instruction", "prompt", "entry_point", "canonical_solution", "context"])
def test_a_field_that_is_no_text_is_named(tmp_path: Path, field: str) -> None:
    for value in (None, 5):
        with pytest.raises(BenchmarkError, match=f"problem 1: {field}: is not a text"):
            read_problems(written(tmp_path, [problem("f", "a.py", **{field: value})]), KINDS)


def test_a_problem_about_a_test_may_not_lack_the_field(tmp_path: Path) -> None:
    without = {name: value for name, value in problem("f", "a.py", "test").items() if name != "test"}
    with pytest.raises(BenchmarkError, match="problem 1 lacks test"):
        read_problems(written(tmp_path, [without]), KINDS)


def test_a_file_without_the_wanted_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="has no problem of kind repair"):
        read_problems(written(tmp_path, [problem("f", "a.py")]), ("repair",))


def test_only_passing_answers_are_kept_each_once_and_not_too_many() -> None:
    rollouts = [
        rollout(0, "return 1", passed=False),
        rollout(1, "return 2"),
        rollout(2, "return   2\n"),
        rollout(3, "return 3", cut=True),
        rollout(4, "return 4"),
        rollout(5, "return 5"),
    ]
    found = keep(rollouts, {"a": "Do it."}, 2, 1)
    assert [record["id"] for record in found.records] == ["a#round1-1", "a#round1-4"]
    assert (found.cut, found.equal, found.over) == (1, 1, 1)
    assert found.records[0]["messages"] == [
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "```python\nreturn 2\n```"},
    ]


def test_a_later_round_adds_to_what_is_kept_and_repeats_nothing() -> None:
    first = keep([rollout(0, "return 1")], {"a": "Do it."}, 2, 1)
    second = keep(
        [rollout(0, "return 1"), rollout(1, "return 2"), rollout(2, "return 3")], {"a": "Do it."}, 2, 2, first.records
    )
    assert [record["id"] for record in second.records] == ["a#round1-0", "a#round2-1"]
    assert (second.equal, second.over) == (1, 1)


def test_an_open_fence_is_closed_and_a_closed_one_stays() -> None:
    assert closed("Here:\n```python\nx = 1") == "Here:\n```python\nx = 1\n```"
    assert closed("```python\nx = 1\n```") == "```python\nx = 1\n```"
    assert closed("x = 1") == "x = 1"


def test_problems_without_a_signal_are_counted() -> None:
    assert signal([0, 4, 2, 0, 1], 4) == {"none": 2, "some": 2, "all": 1}


def test_a_round_says_what_it_sampled_and_what_it_left_out() -> None:
    metrics = [{"problems": [{"passed": 0}, {"passed": 2}, {"passed": 1}]}]
    kept = {"write": keep([rollout(0, "return 1"), rollout(1, "return 1")], {"a": ""}, 2, 1)}
    found = round_of(1, metrics, kept, 2, 0)
    assert [(score.k, round(score.value, 3)) for score in found.scores] == [(1, 0.5), (2, 0.667)]
    assert lines_of(found) == [
        "round 1: 3 of 6 answers pass; 1 of 3 problems are solved by no answer, 1 by all",
        "round 1: 1 answers to train on, 1 of them new; left out of the passing ones: 0 cut by the token limit, 1 equal to another, 0 "
        "over --keep",
    ]
