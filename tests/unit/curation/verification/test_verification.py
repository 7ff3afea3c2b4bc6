"""What running a record says of it, in the real sandbox; and what of a question counts as an example."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mftcoder.curation.example import Example
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.examples import examples_in
from mftcoder.curation.verification.plan import plan
from mftcoder.curation.verification.verdict import Verdict, combined, verdict_of
from mftcoder.data.records.formats import read_record
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.python.run import preload_for
from mftcoder.execution.sandbox import ExecutionResult, Limits

INCREMENT = "def f(x):\n    return x + 1"
CASE = "import unittest\nclass TestF(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), {})"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with open_pool(workers=1) as opened:
        yield opened


def fenced(*codes: str, language: str = "python") -> str:
    return "\n".join(f"```{language}\n{code}\n```" for code in codes)


def example(answer: str, question: str = "Write it.", **fields: Any) -> Example:
    line = json.dumps({"prompt": question, "completion": answer, **fields}).encode()
    return Example(read_record(line, format="auto", task="t", origin="x:1"), line)


def verify(pool: Pool, record: Example, **options: Any) -> Verdict:
    planned = plan(record, VerifyConfig(timeout=1, **options))
    results = dict(
        pool.run(((str(number), run.program()) for number, run in enumerate(planned.runs)), Limits(seconds=1))
    )
    verdicts = [
        verdict_of(results[str(number)], run.language, tuple(run.checks)) for number, run in enumerate(planned.runs)
    ]
    return combined([*planned.known, *(verdict for verdict in verdicts if verdict)])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (example(fenced(INCREMENT), tests="assert f(1) == 2"), "passed tests+import"),
        (example(fenced(INCREMENT), tests="assert f(1) == 3"), "failed tests"),
        (example(fenced(INCREMENT), test_list=["assert f(1) == 2", "assert f(2) == 4"]), "failed tests"),
        (example(fenced(INCREMENT), unit_tests='["assert f(1) == 2"]'), "passed tests+import"),
        (
            example(fenced(INCREMENT), tests="g = 2\nassert f(1) == g", test_setup_code="import math"),
            "passed tests+import",
        ),
        (example(INCREMENT, tests="def check(candidate):\n    assert candidate(1) == 3"), "failed tests"),
        (example(INCREMENT, tests="def check(candidate):\n    assert candidate(1) == 2"), "passed tests+import"),
        (example(fenced(INCREMENT), tests="def test_one():\n    assert f(1) == 3"), "failed tests"),
        (example(fenced(INCREMENT), tests=f"from solution import f\n{CASE.format(2)}"), "passed tests+import"),
        (example(fenced(INCREMENT), tests=CASE.format(3)), "failed tests"),
        (example("    return x + 1\n", "def f(x):\n", tests="assert f(1) == 2"), "passed tests+import"),
        (example(fenced(INCREMENT, "assert f(1) == 2")), "passed asserts+import"),
        (example(fenced(INCREMENT, "assert f(1) == 3")), "failed asserts"),
        (example(fenced(INCREMENT, "def test_f():\n    assert f(1) == 3")), "failed asserts"),
        (example(fenced(INCREMENT), tests=f"{CASE.format(2)}\nunittest.main()"), "passed tests+import"),
        (example(fenced(INCREMENT), tests=f"{CASE.format(3)}\nunittest.main()"), "failed tests"),
        (example(fenced(INCREMENT, f"{CASE.format(2)}\nunittest.main()")), "passed asserts+import"),
        (example(fenced(INCREMENT, f"{CASE.format(3)}\nunittest.main()")), "failed asserts"),
        (example(fenced(INCREMENT, "def test_f():\n    f(1) == 3")), "passed import (asserts:proves_nothing)"),
        (example(fenced(INCREMENT), tests="f('a')"), "failed tests"),
        (example(fenced(f'"""\n>>> f(1)\n2\n"""\n{INCREMENT}')), "passed doctests+import"),
        (example(fenced(f'"""\n>>> f(1)\n3\n"""\n{INCREMENT}')), "failed doctests"),
        (example(fenced(INCREMENT), "Write f.\n- f(1) == 2"), "passed examples+import"),
        (example(fenced(INCREMENT), "Write f.\n`f(1) -> 3`"), "failed examples"),
        (example(fenced("def f(x):\n    return x / 3"), "For example f:\nf(2) => 0.67"), "passed examples+import"),
        (example(fenced(INCREMENT)), "passed import"),
        (example(fenced("print(names)")), "failed import"),
        (example(fenced("def f(:")), "failed compile"),
        (example(fenced("return 1")), "failed compile"),
    ],
)
def test_what_a_record_claims_is_run(pool: Pool, record: Example, expected: str) -> None:
    assert verify(pool, record).name == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (example("It is O(n)."), "no_code"),
        (example(fenced("ls", language="bash")), "language_not_run"),
        (example(fenced("import nosuchmodule")), "missing_module"),
        (example(fenced("import nosuchmodule\ndef f(): pass"), tests="assert f()"), "missing_module"),
        (example(fenced("print(graph)"), "Print this:\ngraph = {1: 2}"), "uses_names_of_the_question"),
        (example(fenced("name = input()")), "reads_input"),
        (example(fenced("text = open('data.csv').read()")), "needs_files_or_network"),
        (example(fenced("import socket\nsocket.create_connection(('10.0.0.1', 80))")), "needs_files_or_network"),
        (example(fenced("import sys\nsys.exit(2)")), "exits"),
        (example(fenced("while True: pass")), "too_slow"),
    ],
)
def test_what_lacks_something_here_is_not_the_records_failure(pool: Pool, record: Example, reason: str) -> None:
    assert verify(pool, record).name == f"not run {reason}"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert True", "proves_nothing"),
        ("f(1) == 3", "proves_nothing"),
        ("def test_f():\n    print(f(1))\n    return f(1) == 3", "proves_nothing"),
        ("try:\n    assert f(1) == 3\nexcept:\n    pass", "proves_nothing"),
        ("try:\n    assert f(1) == 3\nexcept AssertionError:\n    pass", "proves_nothing"),
        (
            "def test_f():\n    try:\n        assert f(1) == 3\n    except Exception:\n        print('no')",
            "proves_nothing",
        ),
        ("class Any:\n    def __eq__(self, other):\n        return True\nassert f(1) == Any()", "proves_nothing"),
        (f"{INCREMENT}\nassert f(1) == 2", "proves_nothing"),
        ("def test_f(tmp_path):\n    assert f(1) == 2", "tests_need_fixtures"),
        ("async def test_f():\n    assert f(1) == 3", "tests_need_a_loop"),
        ("import nosuchmodule\nassert f(1) == 2", "missing_module"),
    ],
)
def test_tests_that_pass_without_the_answer_or_cannot_run_prove_nothing(pool: Pool, tests: str, reason: str) -> None:
    found = verify(pool, example(fenced(INCREMENT), tests=tests))
    assert found.name == f"passed import (tests:{reason})"
    assert not found.is_proof
    assert verify(pool, example(fenced(INCREMENT), tests=tests), checks=["tests"]).outcome == "not_run"


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1)",
        "assert f(1) is not None",
        "assert not f(-1)",
        "while not f(1):\n    pass\nassert f(1) == 2",
        "try:\n    f('a')\nexcept TypeError:\n    pass\nelse:\n    raise ValueError",
    ],
)
def test_tests_that_only_some_wrong_answers_pass_are_proof(pool: Pool, tests: str) -> None:
    assert verify(pool, example(fenced(INCREMENT), tests=tests)).name == "passed tests+import"


@pytest.mark.parametrize(
    "answer",
    [
        "import os\ndef f(x):\n    os._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "def f(x):\n    while True: pass",
        "import sys\ndef f(x):\n    sys.modules.clear()\n    return 2",
    ],
)
def test_an_answer_that_ends_or_hangs_its_process_does_not_pass_its_tests(pool: Pool, answer: str) -> None:
    assert verify(pool, example(fenced(answer), tests="assert f(1) == 3")).outcome == "failed"


def test_tests_of_a_record_never_run_outside_of_the_sandbox(pool: Pool, tmp_path: Any) -> None:
    target = tmp_path / "written"
    tests = f"open({str(target)!r}, 'w').write('x')\nassert f(1) == 2"
    assert verify(pool, example(fenced(INCREMENT), tests=tests)).name == "passed import (tests:needs_files_or_network)"
    assert not target.exists()


def test_a_program_holds_the_answer_and_its_checks_but_not_the_harness() -> None:
    (run,) = plan(example(fenced(INCREMENT), tests="assert f(1) == 2"), VerifyConfig()).runs
    files = run.program().files
    assert len(files["candidate"]) < 500
    assert preload_for(run.program()) == (files["preload"],)


def test_checks_choose_what_is_run(pool: Pool) -> None:
    record = example(fenced(INCREMENT), "Write f.\nf(1) == 3", tests="assert f(1) == 2")
    assert verify(pool, record).name == "failed examples"
    assert verify(pool, record, checks=["tests"]).name == "passed tests"
    assert plan(example(fenced(INCREMENT)), VerifyConfig(checks=("tests",))).known == (
        Verdict.not_run("no_check_chosen"),
    )


@pytest.mark.parametrize(
    ("question", "found"),
    [
        (">>> f(2)\n3", [("f(2)", "3", None)]),
        ("* `f('a', n=[1]) -> {'b': 2}`", [("f('a', n=[1])", "{'b': 2}", None)]),
        ('assert f(2) == 3, "three"', [("f(2)", "3", None)]),
        ("1. f(2) => -0.50", [("f(2)", "-0.50", 2)]),
        ("f(2) → (1, 2)", [("f(2)", "(1, 2)", None)]),
        ("f(2) returns 3", []),
        ("g(2) == 3", []),
        ("f(x) == 3", []),
        ("f(2) == g(3)", []),
        ("f(2) == 3 == 3", []),
        ("f(2) -> int", []),
        (">>> x = f(2)\n3", []),
        ("def f(x) -> 3", []),
    ],
)
def test_examples_are_read_in_the_documented_forms_only(question: str, found: list) -> None:
    assert [example[0] for example in examples_in(question, {"f"})] == [example[0] for example in found]
    assert [example[2] for example in examples_in(question, {"f"})] == [example[2] for example in found]


def test_a_failure_of_the_sandbox_is_no_verdict() -> None:
    assert verdict_of(ExecutionResult("sandbox_error", stderr="no space left"), "python", ("tests",)) is None


@pytest.mark.parametrize(
    "said", ["Verdict: passed root,tests x:y z", "Verdict: failed <b> \x1b[0m", "Verdict: void <a>", "?"]
)
def test_words_from_the_sandbox_are_checked(said: str) -> None:
    found = verdict_of(ExecutionResult("failed", stderr=said), "python", ("tests",))
    assert found is not None
    assert set(found.checks) <= {"tests"}
    assert found.why in ("", "tests")
    assert found.detail.isprintable()
