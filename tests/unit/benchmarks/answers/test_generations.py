"""Generations files: which are accepted, and the errors for the others."""

import json

import pytest

from mftcoder.benchmarks.answers.generations import model_of, read_generations, task_of
from mftcoder.benchmarks.families.humaneval import FAMILY
from mftcoder.benchmarks.problem import Benchmark, Problem
from mftcoder.errors import MftError

BENCHMARK = Benchmark("humaneval", tuple(Problem(f"H/{n}", "python", "", "", "f") for n in range(2)), FAMILY, "here")


def read(tmp_path, content, name="generations_humaneval_m.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_generations(path, BENCHMARK)


def test_a_list_of_lists_is_read_in_problem_order(tmp_path):
    assert read(tmp_path, [["a"], ["b", "c"]]) == [["a"], ["b", "c"]]


def test_records_are_sorted_in_problem_order(tmp_path):
    rows = [
        {"task_id": "H/1", "completion": "b"},
        {"task_id": "H/0", "generation": "a"},
        {"task_id": "H/1", "completion": "c"},
    ]
    assert read(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl") == [["a"], ["b", "c"]]


def test_a_record_may_have_several_samples(tmp_path):
    rows = [{"task_id": "H/0", "generation": ["a", "b"]}, {"task_id": "H/1", "generation": ["c"]}]
    assert read(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl") == [["a", "b"], ["c"]]


@pytest.mark.parametrize("own, written", [("HumanEval", "Python"), ("Python", "HumanEval")])
def test_humanevals_problems_have_two_names(tmp_path, own, written):
    benchmark = Benchmark("b", tuple(Problem(f"{own}/{n}", "python", "", "", "f") for n in range(2)), FAMILY, "here")
    rows = [{"task_id": f"{written}/1", "completion": "b"}, {"task_id": f"{own}/0", "completion": "a"}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_generations(path, benchmark) == [["a"], ["b"]]
    path.write_text('{"task_id": "Java/0", "completion": "a"}')
    with pytest.raises(MftError, match="task_id 'Java/0' is not in this benchmark"):
        read_generations(path, benchmark)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([["a"]], "1 problems, but the benchmark has 2"),
        ([["a"], []], "problem 1: no sample"),
        ([["a"], "b"], "problem 1: expected a list of samples, found a string"),
        ([["a"], [None]], "problem 1, sample 0: expected a string, found null"),
        ("[[", "not valid JSON"),
        ('{"task_id": "H/0", "completion": "a"}', "no answer to 1 of 2 problems: H/1"),
        ('{"task_id": "H/7", "completion": "a"}', ":1: task_id 'H/7' is not in this benchmark"),
        ('{"task_id": "H/0"}', ":1: expected one of the fields generation, completion"),
        ('{"task_id": "H/0", "completion": 3}', ":1: 'completion' must be a string"),
        ("{", ":1: not valid JSON"),
        ("", "no answer to 2 of 2 problems"),
    ],
)
def test_a_mistake_is_reported(tmp_path, content, message):
    with pytest.raises(MftError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)


def test_all_mistakes_are_reported_at_once(tmp_path):
    with pytest.raises(MftError) as caught:
        read(tmp_path, [[1], [2]])
    assert len(caught.value.problems) == 2


def test_task_and_model_are_read_from_the_name(tmp_path):
    path = tmp_path / "generations_humanevalsynthesize-js_qwen_1.8b.json"
    assert task_of(path, ["humaneval", "humanevalsynthesize-js"]) == "humanevalsynthesize-js"
    assert model_of(path, "humanevalsynthesize-js") == "qwen_1.8b"
    assert task_of(tmp_path / "samples.jsonl", ["humaneval"]) is None
    assert model_of(tmp_path / "samples.jsonl", "humaneval") == "samples"
