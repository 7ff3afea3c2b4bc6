"""Two models on the same problems: what changed, how certain that is, and which answers are shown."""

import itertools
import json
import math
from pathlib import Path

import pytest

from mftcoder.reporting.paired import Change, corrected, difference_interval, mcnemar, read_changes


def change(gained: int, lost: int, stayed: int, task: str = "t") -> Change:
    passed = [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * stayed
    ids = tuple(map(str, range(len(passed))))
    return corrected([Change(task, ("a", "b"), tuple(passed), ids, (Path("a"), Path("b")))])[0]


def write(path: Path, task: str, model: str, outcomes: dict[str, list[str]]) -> Path:
    rows = [{"id": key, "passed": found.count("passed"), "statuses": found} for key, found in outcomes.items()]
    path.write_text(json.dumps({"task": task, "model": model, "problems": rows}))
    return path


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (5, 0), (0, 6), (9, 2), (2, 9), (40, 10)])
def test_p_is_the_fraction_of_splits_at_least_as_uneven(gained: int, lost: int) -> None:
    total = gained + lost
    as_uneven = sum(
        math.comb(total, heads) for heads in range(total + 1) if abs(2 * heads - total) >= abs(gained - lost)
    )
    assert mcnemar(gained, lost) == pytest.approx(as_uneven / 2**total)


def test_the_interval_is_that_of_agresti_and_min() -> None:
    """Computed by hand: (10.5 - 2.5) / 102, and 1.96 * sqrt(13 - 64/102) / 102."""
    low, high = difference_interval(10, 2, 100)
    assert (low, high) == pytest.approx((0.0784314 - 0.0675892, 0.0784314 + 0.0675892), abs=1e-6)


def test_the_interval_covers_the_true_change_in_about_95_of_100_exams() -> None:
    """Exactly, over all outcomes of 40 problems that are gained with probability 0.3 and lost with probability 0.1."""
    count, gain, loss = 40, 0.3, 0.1
    covered = 0.0
    for gained, lost in itertools.product(range(count + 1), repeat=2):
        if gained + lost <= count:
            ways = math.comb(count, gained) * math.comb(count - gained, lost)
            chance = ways * gain**gained * loss**lost * (1 - gain - loss) ** (count - gained - lost)
            low, high = difference_interval(gained, lost, count)
            covered += chance * (low <= gain - loss <= high)
    assert 0.93 < covered < 0.97


def test_no_change_has_an_interval_too() -> None:
    low, high = change(0, 0, 50).interval
    assert low == -high
    assert 0.02 < high < 0.06


def test_many_comparisons_raise_every_p() -> None:
    """Holm: of 0.03125 and 0.0625 the smaller is doubled, the larger is not below it."""
    lone = change(6, 0, 20)
    first, second = corrected([change(5, 0, 20), lone])
    assert (lone.p, second.p, first.p) == (0.03125, 0.0625, 0.0625)
    assert (lone.is_more_than_chance, second.is_more_than_chance) == (True, False)


def test_the_result_is_a_plain_sentence() -> None:
    assert change(9, 1, 30).sentence == (
        "t: 31 of 40 problems before, 39 after: +20 points (95% interval +5 to +33), more than chance (p = 0.021)."
    )
    assert "possible by chance (p = 1)" in change(1, 1, 30).sentence
    assert "(p < 0.0001)" in change(30, 0, 0).sentence


def test_a_bound_that_rounds_to_zero_has_no_sign() -> None:
    assert change(10, 3, 67).points == "+9 (0 to +17)"
    assert change(1, 1, 30).points.startswith("0 (-")


def test_shown_are_one_gained_one_lost_and_one_unchanged_problem() -> None:
    assert change(3, 2, 4).shown == [0, 3, 5]
    assert change(3, 0, 0).shown == [0, 1, 2]
    assert change(0, 0, 2).shown == [0, 1]


def test_files_of_one_task_are_compared_with_the_first_problem_by_problem(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "1", "x", "base", {"a": ["passed"], "b": ["failed"], "c": ["failed"]}),
        write(tmp_path / "2", "x", "tuned", {"a": ["passed"], "b": ["passed"], "c": ["timeout"]}),
        write(tmp_path / "3", "y", "base", {"a": ["failed"]}),
        write(tmp_path / "4", "y", "tuned", {"other": ["passed"]}),
        write(tmp_path / "5", "x", "many", {"a": ["passed", "failed"], "b": ["failed", "failed"]}),
    ]
    (found,) = read_changes(files)
    assert (found.task, found.models, found.before, found.after) == ("x", ("base", "tuned"), 1, 2)
    assert (found.gained, found.lost, found.paths) == ([1], [], (files[0], files[1]))


def test_a_metrics_file_without_problems_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(json.dumps({"task": "x", "model": "a", "pass@1": 0.3}))
    assert read_changes([tmp_path / "m", tmp_path / "m"]) == []
