"""Tests and repairs that a model wrote are believed only after they ran in the sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("rensa", reason="the extra `curate` brings rensa")

from mftcoder.app.data import synthesize as app
from mftcoder.app.data.curate import curate
from mftcoder.curation.example import fenced
from mftcoder.curation.pipeline.recipe import parse_recipe
from mftcoder.curation.synthesis.config import parse_synthesis
from mftcoder.curation.synthesis.output import Synthesized
from mftcoder.curation.synthesis.trials import mutants, python_of, usable_tests
from mftcoder.execution.run_programs import Sandbox
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint
from tests.unit.curation.synthesis.test_synthesize import dropped

RIGHT = "def largest(items):\n    if not items:\n        return None\n    return max(items)\n"
WRONG = "def largest(items):\n    return min(items)\n"
GOOD_TESTS = "assert largest([1, 3, 2]) == 3\nassert largest([]) is None"


@pytest.fixture(scope="module")
def one_sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def shared_sandbox(one_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting workers takes longer than these tests."""

    class Shared:
        level, covers = one_sandbox.level, one_sandbox.covers
        run_all = one_sandbox.run_all

        def __enter__(self) -> "Shared":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(app, "Sandbox", Shared)


def run(script: Any, folder: Path, **options: Any) -> tuple[Synthesized, list[Asked]]:
    with ScriptedEndpoint(script) as server:
        endpoint = {"url": server.url, "model": "scripted", "retries": 0}
        raw = {"endpoint": endpoint, "output_dir": str(folder / "out"), **options}
        return app.synthesize(parse_synthesis(raw, origin="test")), server.asked


def records_file(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def written(made: Synthesized, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.folder / task / "train.jsonl").read_text().splitlines()]


def question(answer: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": "Write `largest`, the largest item or None.", "completion": answer, **fields}


def test_tests_are_kept_that_the_code_passes_and_bugs_fail(tmp_path: Path) -> None:
    made, asked = run(
        lambda _: Answer(fenced(GOOD_TESTS)),
        tmp_path,
        tests={"records": records_file(tmp_path, question(fenced(RIGHT)))},
    )
    assert dropped(made) == []
    [example], [record] = written(made, "write_tests"), written(made, "tested")
    assert "def largest" in example["chat_rounds"][0]["content"]
    assert "assert largest([1, 3, 2]) == 3" in example["chat_rounds"][1]["content"]
    assert record["tests"] == GOOD_TESTS
    assert example["synthesis"]["bugs_found"] >= 1
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("I would test it well.", ("tests", "no_assert")),
        (fenced("assert 1 == 1"), ("tests", "no_assert")),
        (fenced("assert largest([1, 3, 2]) == 2"), ("trial", "code_does_not_pass")),
        (fenced("assert largest is not None"), ("trial", "code_does_not_pass")),  # proves nothing: it never calls
        (fenced("assert largest([1]) in (1, None)"), ("trial", "finds_no_bug")),
    ],
)
def test_tests_that_prove_nothing_are_dropped(tmp_path: Path, reply: str, rule: tuple[str, str]) -> None:
    code = "def largest(items):\n    return max(items)\n"
    made, _ = run(lambda _: Answer(reply), tmp_path, tests={"records": records_file(tmp_path, question(fenced(code)))})
    assert dropped(made) == [rule]


def test_records_without_code_or_without_a_place_for_a_bug_are_dropped(tmp_path: Path) -> None:
    path = records_file(tmp_path, question("Just look."), question(fenced("def f(:")), question(fenced("x = 3")))
    made, asked = run(lambda _: Answer(fenced("assert x == 3")), tmp_path, tests={"records": path})
    assert dropped(made) == [("read", "no_python"), ("read", "no_python"), ("tests", "no_assert")]
    assert len(asked) == 1


def sampling(tests: str, *answers: str) -> Any:
    """The tests for the first request, then the answers in turn."""
    replies = iter(answers)
    return lambda asked: Answer(fenced(tests) if "Write 5 tests" in asked.text else fenced(next(replies)))


def test_tests_are_kept_on_which_most_answers_agree(tmp_path: Path) -> None:
    """The second test is wrong: only one of three answers passes it."""
    tests = "assert largest([1, 3, 2]) == 3\nassert largest([]) == 0\nassert largest([]) is None"
    path = records_file(tmp_path, question(fenced(RIGHT)))
    other = "def largest(items):\n    return max(items, default=None)\n"
    zero = "def largest(items):\n    return max(items, default=0)\n"
    made, asked = run(sampling(tests, other, zero), tmp_path, tests={"records": path, "answers": 2})
    assert "`largest(items)`" in asked[1].text
    [record] = written(made, "tested")
    assert record["tests"] == "assert largest([1, 3, 2]) == 3\nassert largest([]) is None"
    assert record["chat_rounds"][1]["content"] == fenced(RIGHT)
    assert sorted(record["samples"]) == sorted(map(fenced, (other.rstrip(), zero.rstrip())))


def test_an_answer_that_most_others_contradict_gives_way_to_one_that_passes(tmp_path: Path) -> None:
    path = records_file(tmp_path, question(fenced(WRONG)))
    answers = ("def largest(items):\n    return max(items)\n", "def largest(items):\n    return sorted(items)[-1]\n")
    made, _ = run(sampling("assert largest([1, 3, 2]) == 3", *answers), tmp_path, tests={"records": path, "answers": 2})
    [record] = written(made, "tested")
    assert record["chat_rounds"][1]["content"] in [fenced(answer) for answer in answers]
    assert fenced(WRONG.rstrip()) in record["samples"]


def test_equal_answers_are_votes_of_their_own(tmp_path: Path) -> None:
    path = records_file(tmp_path, question(fenced(WRONG)))
    made, _ = run(
        sampling("assert largest([1, 3, 2]) == 3", RIGHT, RIGHT), tmp_path, tests={"records": path, "answers": 2}
    )
    assert [record["chat_rounds"][1]["content"] for record in written(made, "tested")] == [fenced(RIGHT)]


def test_tests_without_a_majority_are_dropped(tmp_path: Path) -> None:
    """Two of four answers are not more than half; one answer is missing."""
    path = records_file(tmp_path, question(fenced(RIGHT)))
    script = sampling(
        "assert largest([1, 3, 2]) == 3", "def largest(items):\n    return max(items)\n", WRONG, "no(code"
    )
    made, _ = run(script, tmp_path, tests={"records": path, "answers": 3})
    assert dropped(made) == [("trial", "no_agreement")]


def test_copies_of_the_tested_code_are_taken_out_of_tests() -> None:
    tests = usable_tests(fenced(f"{WRONG}\nfrom solution import largest\nassert largest([1, 2]) == 2"), RIGHT)
    assert "def largest" not in tests
    assert "assert largest([1, 2]) == 2" in tests


def test_a_block_that_a_reply_repeats_counts_once() -> None:
    assert python_of(f"{fenced(RIGHT)}\n\nOr:\n\n{fenced(RIGHT)}\n\n```text\nnote\n```") == RIGHT.rstrip()


def test_bugs_come_from_all_functions_in_turn() -> None:
    code = "def f(a, b):\n    return a + b\n\n\ndef g(a, b):\n    return a - b\n"
    found = mutants(code, 4, "seed")
    assert len(set(found)) == 4
    functions = code.split("\n\n\n")
    assert [[part == one for part, one in zip(bug.split("\n\n\n"), functions, strict=True)] for bug in found] == [
        [False, True],
        [True, False],
        [False, True],
        [True, False],
    ]
    assert mutants(code, 4, "seed") == found


def repairing(*answers: str) -> Any:
    """Replies in turn; requests come one after the other for one record."""
    return lambda asked: Answer(answers[asked.number - 1])


def test_a_failing_answer_is_repaired_from_what_the_sandbox_says(tmp_path: Path) -> None:
    path = records_file(tmp_path, question(fenced(WRONG), tests=GOOD_TESTS))
    script = repairing(f"min is wrong.\n\n{fenced(WRONG.replace('min', 'sorted'))}", f"Empty lists.\n\n{fenced(RIGHT)}")
    made, asked = run(script, tmp_path, repair={"records": path})
    assert dropped(made) == []
    assert "failed tests: AssertionError" in asked[0].text
    assert "sorted(items)" in asked[1].text
    [example], [record] = written(made, "repair"), written(made, "repaired")
    assert "sorted(items)" in example["chat_rounds"][0]["content"]
    assert example["chat_rounds"][1]["content"].startswith("Empty lists.")
    assert record["chat_rounds"][1]["content"] == fenced(RIGHT)
    assert record["samples"] == [fenced(WRONG), fenced(WRONG.replace("min", "sorted"))]


def test_the_model_may_write_the_first_answer_too(tmp_path: Path) -> None:
    path = records_file(tmp_path, question("unused", tests=GOOD_TESTS))
    made, asked = run(repairing(fenced(RIGHT)), tmp_path, repair={"records": path, "answer": True})
    assert len(asked) == 1
    assert [record["chat_rounds"][1]["content"] for record in written(made, "repaired")] == [fenced(RIGHT)]


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (question(fenced(RIGHT), tests=GOOD_TESTS), ("trial", "passes_already")),
        (question(fenced(RIGHT)), ("read", "no_tests")),
        (question("no code", tests=GOOD_TESTS), ("read", "no_python")),
        (question(fenced(WRONG), tests=GOOD_TESTS), ("trial", "still_fails")),
        (question(fenced("def largest(:"), tests=GOOD_TESTS), ("trial", "still_fails")),
        (question(fenced(f"import no_such_module\n{WRONG}"), tests=GOOD_TESTS), ("trial", "not_run")),
        (question(fenced(WRONG), tests="assert True"), ("trial", "not_run")),
    ],
)
def test_what_is_not_repaired_names_its_rule(tmp_path: Path, record: dict[str, Any], rule: tuple[str, str]) -> None:
    made, _ = run(lambda _: Answer(fenced(WRONG)), tmp_path, repair={"records": records_file(tmp_path, record)})
    assert dropped(made) == [rule]


def test_repaired_answers_and_failed_samples_make_preference_pairs(tmp_path: Path) -> None:
    path = records_file(tmp_path, question(fenced(WRONG), tests=GOOD_TESTS))
    made, _ = run(repairing(fenced(RIGHT)), tmp_path, repair={"records": path})
    pairs = tmp_path / "pairs.jsonl"
    steps = [{"verify": {"checks": ["tests"], "samples": "samples", "preferences": str(pairs)}}]
    tasks = {"repaired": str(made.folder / "repaired")}
    curated = curate(
        parse_recipe({"tasks": tasks, "steps": steps, "output_dir": str(tmp_path / "clean")}, origin="test")
    )
    assert curated.manifest["kept"] == 1
    [pair] = map(json.loads, pairs.read_text().splitlines())
    chosen, rejected = (pair[name][-1]["content"] for name in ("chosen", "rejected"))
    assert (chosen, rejected) == (fenced(RIGHT), fenced(WRONG))
