"""The reward of an answer: the share of its tests, and nothing for an answer that cheats, in the real sandbox."""

import math
from collections.abc import Iterator

import pytest

from mftcoder.benchmarks.families.exam import benchmark_of
from mftcoder.benchmarks.problem import Asking
from mftcoder.benchmarks.rewards import Graded, Outcome, RewardWeights, groups_of, outcome_of, single_tests
from mftcoder.errors import ConfigError, UnjudgedError
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits
from tests.unit.benchmarks.families.test_exam import FUNCTION, HEADER, row

LIMITS = Limits(seconds=5, memory_mb=512)
CHAT = Asking("chat")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool("process", workers=1) as pool:
        yield pool


def judged(pool: Pool, code: str) -> Outcome:
    """The outcome of an answer that holds this code in a fenced block, to the problem of writing `clip`."""
    text = f"Here it is:\n```python\n{code}```"
    whole = benchmark_of("write", [row("write")], "exam.jsonl")
    alone = benchmark_of("write", single_tests(row("write")), "exam.jsonl")
    problems = [(whole, whole.problems[0]), *((alone, problem) for problem in alone.problems)]
    programs = [
        (str(number), benchmark.program(problem, benchmark.extract(problem, text, CHAT)))
        for number, (benchmark, problem) in enumerate(problems)
    ]
    results = dict(pool.run(programs, LIMITS))
    first, *parts = [results[key] for key, _ in programs]
    return outcome_of(first.status, first.stderr, text, "clip", [part.status for part in parts])


def test_an_answer_is_paid_for_each_test_that_it_passes(pool: Pool) -> None:
    assert judged(pool, FUNCTION) == Outcome(1.0, passed=True, compiles=True, format=True)
    half = judged(pool, f"{HEADER}    return max(value, low)\n")  # right below and inside, wrong above
    assert (half.tests, half.passed) == (pytest.approx(2 / 3), False)
    assert judged(pool, f"{HEADER}    return 99\n") == Outcome(0.0, passed=False, compiles=True, format=True)
    assert judged(pool, f"{HEADER}    return (\n") == Outcome(0.0, passed=False, compiles=False, format=True)


CHEATS = {
    "exits with 0": f"import os\n{HEADER}    os._exit(0)\n",
    "exits before the tests": f"import sys\nprint('PASS')\nsys.exit(0)\n{FUNCTION}",
    "prints what a passing run prints": f"{HEADER}    print('PASS', 'passed', '{{\"status\": \"passed\"}}')\n",
    "returns what equals everything": (
        f"class Same:\n    def __eq__(self, other):\n        return True\n{HEADER}    return Same()\n"
    ),
    "patches the tests": (
        f"import builtins, sys\nbuiltins.AssertionError = KeyError\nfor m in list(sys.modules.values()):\n"
        f"    for n in ('check', 'assert_equal', 'compare', 'judge', 'verdict'):\n        setattr(m, n, lambda *a, **k: True)\n"
        f"{HEADER}    return None\n"
    ),
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_a_scripted_policy_that_cheats_gets_no_reward_for_tests_and_its_answers_lose(pool: Pool, code: str) -> None:
    honest, cheat = judged(pool, FUNCTION), judged(pool, code)
    assert (cheat.tests, cheat.passed) == (0.0, False)
    weights = RewardWeights()
    assert weights.reward(honest) == pytest.approx(1.0)
    assert weights.reward(cheat) <= 0.2 / 1.2 + 1e-9
    (group,) = groups_of([Graded("a", "x", False, weights.reward(one)) for one in (honest, cheat)], {"a": ""}).records
    assert group["rewards"][1] < sum(group["rewards"]) / 2


def test_an_answer_that_cheated_in_one_test_gets_nothing_for_the_others() -> None:
    assert outcome_of("failed", "", "", "f", ["passed", "cheated", "passed"]).tests == 0.0
    assert outcome_of("cheated", "", "", "f", ["passed"]).tests == 0.0


@pytest.mark.parametrize(("status", "parts"), [("sandbox_error", []), ("failed", ["passed", "sandbox_error"])])
def test_an_answer_that_the_sandbox_could_not_judge_has_no_reward_not_a_reward_of_0(
    status: str, parts: list[str]
) -> None:
    with pytest.raises(UnjudgedError, match="an answer about clip: the sandbox failed, so it has no reward"):
        outcome_of(status, "", "", "clip", parts)


def test_a_problem_without_single_tests_pays_for_passing_all() -> None:
    assert single_tests(row("test")) == []
    assert [outcome_of(status, "", "", "f", []).tests for status in ("passed", "failed")] == [1.0, 0.0]


def test_single_tests_keep_what_the_asserts_need() -> None:
    found = single_tests(
        {**row("write"), "test": "import math\nassert clip(1, 0, 5) == 1\nassert clip(math.pi, 0, 3) == 3\n"}
    )
    assert [part["test"] for part in found] == [
        "import math\nassert clip(1, 0, 5) == 1\n",
        "import math\nassert clip(math.pi, 0, 3) == 3\n",
    ]
    assert [part["task_id"].rpartition("#")[2] for part in found] == ["0", "1"]


def test_single_tests_of_humanevals_form_are_the_asserts_of_its_function_check() -> None:
    """`assert True` calls nothing, so it tests nothing alone."""
    asserts = (
        "    assert candidate(1, 0, 5) == 1\n    assert True, 'for debugging'\n    assert candidate(9, 0, 5) == 5\n"
    )
    found = single_tests({**row("write"), "test": f"LOW = 0\ndef check(candidate):\n{asserts}\ncheck(clip)\n"})
    assert len(found) == 2
    assert "candidate(1, 0, 5)" in found[0]["test"] and "candidate(9" not in found[0]["test"]
    for part in found:
        assert "LOW = 0" in part["test"] and "assert True" in part["test"] and part["test"].endswith("check(clip)\n")


def test_weights_are_parsed_and_give_a_mean() -> None:
    weights = RewardWeights.parse("tests=3, format=1")
    assert weights == RewardWeights(3.0, 0.0, 0.0, 1.0)
    assert weights.reward(Outcome(0.5, passed=False, compiles=True, format=True)) == pytest.approx(2.5 / 4)


def test_outcomes_that_are_worth_the_same_have_the_same_reward() -> None:
    """0.1 + 0.2 is not 0.3 in floating point; as a difference within a group it would be a whole advantage."""
    weights = RewardWeights.parse("tests=1,compiles=0.1,format=0.2")
    tests = weights.reward(Outcome(0.3, passed=False, compiles=False, format=False))
    assert tests == weights.reward(Outcome(0.0, passed=False, compiles=True, format=True))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("test=1", "--reward: unknown part 'test'. Did you mean 'tests'?"),
        ("tests=nan", "--reward: tests: must be a number of at least 0, not 'nan'"),
        ("tests=-1", "must be a number of at least 0"),
        ("tests=a", "must be a number of at least 0"),
        ("tests=0", "no part counts, so every answer would have the same reward"),
        ("", "no part counts"),
    ],
)
def test_a_wrong_weight_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as found:
        RewardWeights.parse(text)
    assert problem in str(found.value)


def graded(name: str, *rewards: float, cut: bool = False, text: str = "x") -> list[Graded]:
    return [Graded(name, text, cut, reward) for reward in rewards]


def test_groups_without_a_signal_are_left_out_and_counted() -> None:
    every = [*graded("all", 1, 1), *graded("none", 0, 0), *graded("cut", 0, 1, cut=True), *graded("good", 0, 1)]
    found = groups_of(every, dict.fromkeys(("all", "none", "cut", "good"), "q"))
    assert [record["id"] for record in found.records] == ["good"]
    assert (found.equal, found.cut) == (2, 1) and math.isclose(found.mean_reward, 0.5)


def test_an_answer_that_was_cut_or_is_empty_counts_in_its_group_and_is_not_trained() -> None:
    every = [*graded("a", 0.0, cut=True), *graded("a", 0.5), *graded("a", 0.0, text=" ")]
    (record,) = groups_of(every, {"a": "q"}).records
    assert (record["rewards"], record["trained"]) == ([0.0, 0.5, 0.0], [False, True, False])
