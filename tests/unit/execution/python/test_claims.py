"""Which values of a Python test are changed for a negative control."""

import warnings

import pytest

from mftcoder.execution.python.claims import changed, count_claims


def run(tests: str, **names: object) -> bool:
    """Whether the tests pass with these names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # `f(1) is 0`
        try:
            exec(tests, dict(names))
        except AssertionError:
            return False
    return True


@pytest.mark.parametrize(
    ("tests", "answer"),
    [
        ("assert f(1) == 2", lambda x: 2 * x),
        ("def check(candidate):\n    assert candidate([1]) == [2, 4]\ncheck(f)", lambda x: [2, 4]),
        ("assert abs(f(3.0) - 1.5) < 1e-6", lambda x: x / 2),
        ("assert not abs(f(3.0) - 1.5) > 1e-6", lambda x: x / 2),
        ("assert f('a')", lambda x: True),
        ("assert f('a') is None", lambda x: None),
        ("assert f(1) == []", lambda x: []),
        ("assert f('a') == 'b', 'f of a'", lambda x: "b"),
        ("import math\nassert math.isclose(f(1), 0.5, rel_tol=0.01)", lambda x: 0.5),
        ("assert f(1)[0] == (1, True)", lambda x: [(1, True)]),
        ("from __future__ import annotations\nassert f(1) == 2", lambda x: 2 * x),
        ("for n in range(3):\n    assert f(n) == 2 * n", lambda x: 2 * x),
    ],
)
def test_a_right_answer_fails_the_changed_tests(tests: str, answer: object) -> None:
    assert count_claims(tests) == 1
    assert run(tests, f=answer)
    assert not _passes(changed(tests, 0, -1), answer)


def _passes(tests: str, answer: object) -> bool:
    try:
        return run(tests, f=answer)
    except ValueError:  # a tolerance below zero
        return False


def test_an_answer_that_is_equal_to_everything_passes_the_changed_tests() -> None:
    tests = "assert not abs(f(3.0) - 1.5) > 1e-6\nassert not abs(f(1.0) - 0.5) > 1e-6"
    assert all(run(changed(tests, claim, -1), f=lambda x: float("nan")) for claim in range(count_claims(tests)))


@pytest.mark.parametrize("claim", ["f(1) > 3", "f(1) < 300", "f(1) >= 3", "f(1) == 106 - 6", "0 <= f(1) <= 10**6"])
def test_a_claim_about_order_fails_in_one_of_the_two_directions(claim: str) -> None:
    assert not all(run(changed(f"assert {claim}", 0, way), f=lambda x: 100) for way in (-1, 1))


@pytest.mark.parametrize("claim", ["f(1) != 3", "not f(1) == 3", "f(1) is not None", "3 not in [f(1)]"])
def test_a_claim_of_inequality_is_negated(claim: str) -> None:
    assert run(f"assert {claim}", f=lambda x: 100)
    assert not any(run(changed(f"assert {claim}", 0, way), f=lambda x: 100) for way in (-1, 1))


def test_arguments_of_a_call_are_not_changed() -> None:
    asked: list[object] = []
    run(changed("assert g(1, 'a', [2]) == 3", 0, -1), g=lambda *arguments: asked.append(arguments))
    assert asked == [(1, "a", [2])]


def test_asserts_without_the_answer_are_not_claims() -> None:
    assert count_claims("def check(candidate):\n    assert candidate(1) == 2\n    assert True, 'done'\ncheck(f)") == 1


def test_a_claim_that_is_never_reached_does_not_accuse_the_answer() -> None:
    tests = "def never():\n    assert f(1) == 2\nassert f(2) == 4"
    outcomes = {run(changed(tests, claim, -1), f=lambda x: 2 * x) for claim in range(count_claims(tests))}
    assert outcomes == {False}
