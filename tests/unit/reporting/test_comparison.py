"""The numbers of a comparison, computed by hand for two methods, two tasks and two seeds."""

from pathlib import Path

import pytest

from mftcoder.errors import DataError
from mftcoder.reporting.comparison import Outcome, compare, outcome_of
from mftcoder.reporting.comparison_page import render_comparison
from mftcoder.reporting.run_folder import Record, RunRecord


def run(easy: list[float], hard: list[float], *, seconds: float = 1.0, balancing: float = 0.0) -> RunRecord:
    """A run with a validation every ten steps, and one before the first step."""
    validation: list[Record] = [
        {"kind": "validation", "step": 10 * i, "loss": (e + h) / 2, "losses": {"easy": e, "hard": h}}
        for i, (e, h) in enumerate(zip(easy, hard, strict=True))
    ]
    steps = range(1, 10 * (len(easy) - 1) + 1)
    train: list[Record] = [
        {"kind": "train", "step": step, "seconds": seconds, "weights": {"easy": 0.5, "hard": 0.5}} for step in steps
    ]
    balance: list[Record] = [{"kind": "balance", "step": step, "seconds": balancing} for step in steps if balancing]
    return RunRecord("run", Path("run"), tuple(train), tuple(validation), tuple(balance), 0, "", {}, {}, {}, ())


EASY, HARD = [4.0, 2.0, 1.0, 1.5], [4.0, 3.0, 2.8, 2.0]  # best at step 20 and 30; mean least at step 30


def test_an_outcome_has_each_tasks_best_loss_and_the_kept_checkpoint() -> None:
    outcome = outcome_of(run(EASY, HARD, seconds=2.0, balancing=0.1), seed=7)
    assert outcome == Outcome(
        seed=7,
        steps=30,
        best={"easy": 1.0, "hard": 2.0},
        best_step={"easy": 20.0, "hard": 30.0},
        kept_step=30.0,
        kept={"easy": 1.5, "hard": 2.0},
        last={"easy": 1.5, "hard": 2.0},
        seconds_per_step=2.0,
        balancing_share=pytest.approx(0.05),
    )
    assert outcome.spread == pytest.approx(1 / 3)
    assert outcome.regression == outcome.compromise == pytest.approx(0.25)  # easy 50% above its best, hard at it


def test_methods_are_compared_with_single_task_runs_of_the_same_seed() -> None:
    balanced = [4.0, 2.0, 1.6, 1.2]
    methods = {
        "uniform": [outcome_of(run(EASY, HARD), 0), outcome_of(run(EASY, HARD), 1)],
        "pace": [outcome_of(run(balanced, HARD, seconds=1.1), 0), outcome_of(run(EASY, HARD, seconds=1.3), 1)],
    }
    alone = {("easy", 0): 1.25, ("easy", 1): 1.0, ("hard", 0): 2.5, ("hard", 1): 2.0}
    uniform, pace = compare(methods, alone)
    assert uniform.best_against_alone["easy"].mean == pytest.approx((1.0 / 1.25 - 1 + 0.0) / 2)
    assert pace.kept_against_alone["easy"].mean == pytest.approx(((1.2 / 1.25 - 1) + (1.5 / 1.0 - 1)) / 2)
    assert pace.best_against_alone["hard"].mean == pytest.approx(-0.1)
    # Seed 0: easy 1.0 before 1.2, hard tied; seed 1: all tied.
    assert uniform.rank.mean == pytest.approx(((1 + 1.5) / 2 + 1.5) / 2)
    assert pace.rank.mean == pytest.approx(((2 + 1.5) / 2 + 1.5) / 2)
    assert pace.spread.mean == pytest.approx((0 + 1 / 3) / 2) and pace.spread.deviation == pytest.approx(
        0.2357, abs=1e-4
    )
    assert pace.step_time_against_uniform is not None
    assert pace.step_time_against_uniform.mean == pytest.approx(1.2)


def test_one_seed_has_no_deviation_and_no_uniform_no_step_time() -> None:
    (result,) = compare({"coba": [outcome_of(run(EASY, HARD), 0)]}, {})
    assert result.rank.deviation is None and result.step_time_against_uniform is None
    assert result.best_against_alone == {}


def test_a_run_without_validation_is_named() -> None:
    with pytest.raises(DataError, match="run: no validation losses"):
        outcome_of(run([], []), 0)


def test_the_page_shows_every_method_and_task_in_both_forms() -> None:
    runs = {"uniform": [run(EASY, HARD)], "pace": [run(EASY, HARD, balancing=0.01)]}
    alone = {("easy", 0): 1.25, ("hard", 0): 2.5}
    results = compare({name: [outcome_of(found[0], 0)] for name, found in runs.items()}, alone)
    pages = render_comparison(results, runs, {"easy": 1.25, "hard": 2.5}, "mft compare my.yaml")
    for text in (pages.html, pages.markdown):
        assert "mft compare my.yaml" in text
        for word in ("uniform", "pace", "easy", "hard", "-20.0%", "1.00"):
            assert word in text
    assert pages.html.count("<svg") > 4 and "http" not in pages.html.replace("http://www.w3.org", "")
