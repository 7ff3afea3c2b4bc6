"""A problem of an exam is found verbatim and with other names, an unrelated function is not, and a hit says what it is."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.data.curate import curate
from mftcoder.benchmarks.catalogue import load
from mftcoder.curation.decontamination.examples import example_hashes
from mftcoder.curation.decontamination.exams import DecontaminateConfig, ExamProblem, problems_of_files
from mftcoder.curation.decontamination.rules import Decontamination, function_fingerprints
from mftcoder.curation.duplicates.ngrams import core_words
from mftcoder.curation.example import Drop, Example, begins_as_python
from mftcoder.curation.pipeline.recipe import parse_recipe
from mftcoder.data.records.formats import read_record

SOLUTION = '''def close_pairs(numbers, limit):
    """Return how many pairs of neighbours in the list are nearer to each other than the limit."""
    count = 0
    for one, other in zip(numbers, numbers[1:]):
        if abs(one - other) < limit:
            count += 1
    return count
'''
RENAMED = '''def f(xs: list, d: float) -> int:
    """Something else."""
    n = 0  # a comment
    for a, b in zip(xs, xs[1:]):
        if abs(a - b) < d:
            n += 1
    return n
'''
PROBLEM = ExamProblem(
    "exam 7",
    (SOLUTION,),
    SOLUTION,
    "close_pairs",
    "Return how many pairs of neighbours in the list are nearer than the limit.",
)


def example(question: str, answer: str) -> Example:
    line = json.dumps({"prompt": question, "completion": answer}).encode()
    return Example(read_record(line, format="auto", task="t", origin="f:1"), line)


def check(question: str, answer: str, **options: Any) -> Drop | None:
    config = DecontaminateConfig(benchmarks=("mini",), **options)
    return Decontamination(config, [PROBLEM]).check(example(question, answer))


def fingerprints(code: str) -> set[int]:
    return {function.hash for function in function_fingerprints(ast.parse(code))}


def test_ten_words_in_a_row_are_a_hit_and_nine_are_not() -> None:
    words = PROBLEM.description.split()
    hit = check(f"Please: {' '.join(words[:10])}", "no")
    assert hit is not None
    assert (hit.rule, hit.details["problem"]) == ("exam_ngram", "exam 7")
    assert hit.details["gram"] == "return how many pairs of neighbours in the list are"
    assert 0 < hit.value < 0.1
    assert check(f"Please: {' '.join(words[:9])}", "no") is None


def test_an_ignored_ngram_does_not_count() -> None:
    words = "return how many pairs of neighbours in the list are"
    assert check(f"{words}?", "no", ignore=(words,)) is None
    assert check(f"{words} nearer?", "no", ignore=(words,)) is not None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Write it.", f"Here:\n```python\n{RENAMED}```"),
        ("Write it.", RENAMED),
        (RENAMED[:40] + '    """Something."""\n', RENAMED.split('"""\n')[1]),
        (f"What does this do?\n```\n{RENAMED}```", "It counts."),
        ("Write it.", "```py\n    class A:\n" + "".join(f"        {line}\n" for line in RENAMED.split("\n")) + "```"),
    ],
    ids=["fenced", "bare", "continued", "asked about", "as a method"],
)  # fmt: skip
def test_the_same_code_under_other_names_is_a_hit(question: str, answer: str) -> None:
    hit = check(question, answer)
    assert hit is not None
    assert (hit.rule, hit.value, hit.details["problem"]) == ("exam_code", 1.0, "exam 7")


@pytest.mark.parametrize(
    "change", [("abs(", "len("), ("< d", "> d"), ("n = 0", "n = 1"), ("xs[1:]", "xs[2:]"), ("b in", "a in")]
)
def test_code_that_does_something_else_has_another_fingerprint(change: tuple[str, str]) -> None:
    assert fingerprints(RENAMED) == fingerprints(SOLUTION) != set()
    assert fingerprints(RENAMED.replace(*change)) != fingerprints(SOLUTION)


SMALL_PROBLEM = ExamProblem(
    "exam 8",
    ("def strlen(text):\n    return len(text)\n", ">>> strlen('abc')\n3"),
    "def strlen(text):\n    return len(text)\n",
    "strlen",
    "Return how many characters a text has.",
)


@pytest.mark.parametrize(
    ("question", "is_hit"),
    [
        ("Write it.", False),
        ("Write the size of x. For example size('abc') should return 3.", True),
        ("Write the size of x. For example size('abc') should return 4.", False),
        ("How many characters has it?", True),  # 2 of 3 core words
        ("How many items has it?", False),
    ],
)
def test_a_small_function_is_a_hit_only_beside_an_example_or_half_of_the_words(question: str, is_hit: bool) -> None:
    rules = Decontamination(DecontaminateConfig(benchmarks=("mini",)), [SMALL_PROBLEM])
    found = rules.check(example(question, "def size(x: str) -> int:\n    return len(x)\n"))
    assert (found is not None) == is_hit
    assert found is None or (found.rule, found.details["problem"]) == ("exam_code", "exam 8")


def test_helpers_of_a_problem_count_only_where_its_own_function_is_small() -> None:
    helper = (
        "def prime(n):\n    for k in range(2, n):\n        if n % k == 0:\n            return False\n    return True\n"
    )
    small = "def both(n):\n    return prime(n)\n"
    large = "def all_primes(xs):\n    return [x for x in xs if prime(x) and x < 100]\n"
    for own, name, expected in ((small, "both", True), (large, "all_primes", False)):
        problem = ExamProblem("exam 9", (own,), helper + own, name)
        rules = Decontamination(DecontaminateConfig(benchmarks=("mini",)), [problem])
        assert (rules.check(example("Write it.", helper.replace("prime", "f"))) is not None) == expected


def test_a_solution_is_found_behind_a_question_or_an_answer_that_begins_in_any_way() -> None:
    head, _, body = RENAMED.partition("    n = 0")
    constant = "LIMIT = 3\n\n"
    for question, answer in ((constant + head, f"    n = 0{body}"), ("Write it.", constant + RENAMED)):
        hit = check(question, answer)
        assert hit is not None
        assert hit.rule == "exam_code"


def test_a_parameter_with_the_name_of_a_builtin_is_a_name() -> None:
    assert fingerprints(RENAMED.replace("xs", "list")) == fingerprints(SOLUTION)
    assert fingerprints(RENAMED.replace("abs(", "len(")) != fingerprints(SOLUTION)


@pytest.mark.parametrize(
    "text",
    [">>> f(2, [3])\n'a'", "assert g(2,[3]) == 'a'", "f (2, [3]) -> \"a\".", 'f(2, [3])==\'a\'"""', "Then f(2, [3]) should return 'a'"],
)  # fmt: skip
def test_an_example_is_the_same_however_it_is_written(text: str) -> None:
    assert example_hashes(text) == example_hashes("f(2, [3]) => 'a'") != frozenset()


@pytest.mark.parametrize(
    "text", ["f(x) == 3", "f(2, [3]", "f(1if x) == '\\d'", ">>> f(2)\nTraceback", "f(2) == x", "(2) == 2", ">>> f(2)"]
)
def test_what_has_no_literal_arguments_and_value_is_no_example(text: str) -> None:
    assert example_hashes(text) == frozenset()


def test_python_with_windows_line_ends_is_read_as_python() -> None:
    assert begins_as_python(SOLUTION.replace("\n", "\r\n"))
    assert begins_as_python("import os\r\n\r\ndef f():\r\n    pass\r\n")


def test_published_rules_find_the_name_or_the_core_words_of_the_question() -> None:
    def rule(question: str, answer: str) -> str:
        hit = check(question, answer, rules="published")
        return hit.rule if hit else ""

    assert rule("Write it.", "x = close_pairs(y, 3)") == "exam_function_name"
    assert rule("Write it.", "x = my_close_pairs(y, 3)") == ""
    core = sorted(core_words(PROBLEM.description))
    assert core == ["limit", "list", "many", "nearer", "neighbours", "pairs", "return"]
    assert rule(" ".join(core[:2]), "no") == ""  # 2 of 7: 29%
    assert rule(" ".join(core[:3]), "no") == "exam_core_words"  # 3 of 7: 43%
    assert rule("Write it.", " ".join(core)) == ""


def test_problems_of_a_folder_may_have_any_fields(tmp_path: Path) -> None:
    lines = [
        {"prompt": "def f(x):\n", "canonical_solution": "    return x\n", "entry_point": "f"},
        {"instruction": "Do it.", "output": "done"},
        {"title": "Exam", "task": "Say what it is.", "points": 3},
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(problems_of_files((str(tmp_path),), tmp_path / "cache"))
    assert [problem.texts for problem in found] == [
        ("def f(x):\n    return x\n",),
        ("Do it.", "done"),
        ("Exam", "Say what it is."),
    ]
    assert found[0].entry_point == "f"
    assert found[2].name == f"{tmp_path / 'exam.jsonl'}:3"


def test_every_problem_of_a_benchmark_fed_as_data_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own benchmark, beside functions that have nothing to do with it."""
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))
    problems = load("mini").problems
    planted = [{"prompt": problem.prompt, "completion": problem.reference} for problem in problems]
    clean = [{"prompt": f"Describe plan {number}.", "completion": RENAMED} for number in range(5)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*planted, *clean]))
    raw = {
        "tasks": {"a": str(tmp_path / "data.jsonl")},
        "steps": [{"decontaminate": {"benchmarks": "mini"}}],
        "output_dir": str(tmp_path / "out"),
    }
    manifest = curate(parse_recipe(raw, origin="r")).manifest
    assert (manifest["read"], manifest["kept"]) == (len(problems) + 5, 5)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [entry["problem"] for entry in dropped] == [f"mini {problem.id}" for problem in problems]
    assert sum(found["records"] for found in manifest["grams"]) > 0
