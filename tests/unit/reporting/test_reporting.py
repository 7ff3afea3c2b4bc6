"""The report of small, hand-written runs: what is read, and the content of tables and page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mftcoder.errors import DataError
from mftcoder.reporting import charts, tables
from mftcoder.reporting.page import render
from mftcoder.reporting.run_folder import read_improvement, read_run, read_runs, series
from mftcoder.reporting.scores import find_metrics, read_scores

LOSSES = {"before": {"tests": 2.0, "repair": 1.0}, "after": {"tests": 1.5, "repair": 0.9}}


def write_run(folder: Path, weights: tuple[float, float] = (0.5, 0.5), **files: Any) -> Path:
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = [
        {"kind": "validation", "step": 0, "loss": 1.5, "losses": LOSSES["before"]},
        {"kind": "train", "step": 1, "loss": 1.4, "losses": {"tests": 1.9, "repair": None}, "seconds": 2.0}
        | {
            "weights": {"tests": 0.5, "repair": 0.5},
            "learning_rate": 1e-4,
            "tokens_per_second": 100.0,
            "grad_norm": 0.7,
        },
        {"kind": "train", "step": 2, "loss": 1.3, "losses": {"tests": 1.6, "repair": 0.95}, "seconds": 3.0}
        | {"weights": dict(zip(("tests", "repair"), weights, strict=True)), "tokens_per_second": 300.0},
        {"kind": "validation", "step": 2, "loss": 1.2, "losses": LOSSES["after"]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def write_metrics(path: Path, **metrics: Any) -> Path:
    path.write_text(json.dumps(metrics))
    return path


def test_a_run_folder_with_only_its_metrics_can_be_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "bare"))
    assert (run.name, run.tasks, len(run.train), len(run.validation)) == ("bare", ["tests", "repair"], 2, 2)
    assert (run.config, run.data, run.summary, run.checkpoints) == ("", {}, {}, ())


def test_an_unseen_task_is_a_gap_not_a_zero(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert series(run.train, "losses", "repair") == [(2.0, 0.95)]


def test_a_torn_last_line_is_counted_and_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    run = read_run(folder)
    assert (run.torn_lines, len(run.train)) == (1, 2)
    assert "1 line(s) of metrics.jsonl could not be read" in render([run], []).html


def test_damaged_lines_and_numbers_without_end_stop_no_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary={"steps": 10**400, "before": {"loss": 10**400}})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n" + json.dumps({"kind": "train", "step": 10**400, "losses": {"tests": 1}}) + "\n")
    run = read_run(folder)
    assert run.torn_lines == 1
    assert len(series(run.train, "losses", "tests")) == 2
    assert render([run], []).html


def round_of(**changes: Any) -> dict[str, Any]:
    entry = {"number": 1, "problems": 4, "rollouts": 8, "passed": 2, "solved": {"none": 3}, "kept": 5, **changes}
    return {name: value for name, value in entry.items() if value != "left out"}


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("metrics.jsonl", {"losses": True}, ":1: losses: Input should be a valid dictionary, not True"),
        ("metrics.jsonl", {"losses": {"tests": "1.5"}}, ":1: losses.tests: must be a number, not '1.5'"),
        ("metrics.jsonl", {"step": True}, ":1: step: must be a number, not True"),
        ("metrics.jsonl", {"rewards": {"a": 1}}, ":1: rewards.a: Input should be a valid dictionary, not 1"),
        ("metrics.jsonl", {"losses": {"\ud800": 1}}, ":1: a text holds half of a surrogate pair"),
        ("data.json", [], ": must hold an object, not []"),
        ("data.json", {"tasks": True}, ": tasks: Input should be a valid dictionary, not True"),
        (
            "data.json",
            {"curation": {"a": {"cards": [1]}}},
            ": curation.a.cards.0: Input should be a valid string, not 1",
        ),
        ("data.json", {"curation": {"a": {"exams": ["x"]}}}, ": curation.a.exams: Input should be a valid dictionary"),
        ("data.json", {"tasks": {"a": {"\ud800": 1}}}, ": a text holds half of a surrogate pair"),
        ("summary.json", {"best": 3}, ": best: should be a section of fields, not 3"),
        ("summary.json", {"seconds": "12"}, ": seconds: must be a number, not '12'"),
        ("versions.json", {"torch": "\ud800"}, ": a text holds half of a surrogate pair"),
        ("improve.json", {}, ": rounds: is required"),
        ("improve.json", {"rounds": [round_of(solved="left out")]}, ": rounds.0.solved: is required"),
        ("improve.json", {"rounds": [round_of(rollouts=0)]}, ": rounds.0.rollouts: Input should be greater than"),
        ("improve.json", {"rounds": [round_of(passed=10**400)]}, ": rounds.0.passed: Input should be less than"),
        ("improve.json", {"rounds": [round_of(number=10**400)]}, ": rounds.0.number: Input should be less than"),
        ("improve.json", {"rounds": [round_of(mean_reward=0.5)]}, ": rounds.0: left_out.equal: is required beside"),
        (
            "improve.json",
            {"rounds": [round_of(), round_of(mean_reward=0.5, left_out={"equal": 1})]},
            ": rounds: some have a mean_reward and some have none",
        ),
    ],
)
def test_values_of_a_wrong_type_are_named_with_their_file(
    file: str, content: Any, problem: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(json.dumps({"kind": "train", **content} if file == "metrics.jsonl" else content))
    with pytest.raises(DataError) as caught:
        read_improvement(folder)
        read_run(folder)
    (line,) = caught.value.problems
    assert line.startswith(f"{folder / file}{problem}")


def test_folders_that_are_not_runs_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        read_runs([tmp_path / "none", tmp_path / "empty"])
    assert len(caught.value.problems) == 2
    assert "no such folder" in caught.value.problems[0]
    assert "it has no metrics.jsonl" in caught.value.problems[1]


def test_runs_with_equal_folder_names_get_different_names(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / side / "run") for side in "ab"]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_checkpoints_are_sorted_by_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("step_100", "step_20", ".step_120.tmp"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert read_run(folder).checkpoints == ("step_20", "step_100")


def test_the_loss_table_has_before_after_and_the_step_of_the_minimum(tmp_path: Path) -> None:
    table = tables.loss_table([read_run(write_run(tmp_path / "run"))])
    assert table.columns == ("task", "before", "after", "change", "best", "best at step")
    assert table.rows[0] == ("tests", "2.0000", "1.5000", "-25.0%", "1.5000", "2")


def test_preference_tasks_have_a_table_of_accuracy_and_margin(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert not tables.preference_table([read_run(folder)]).rows
    with (folder / "metrics.jsonl").open("a") as file:
        for step, accuracy, margin in ((0, 0.5, 0.0), (9, 0.75, 1.5)):
            means = {"chosen": margin, "rejected": None, "margin": margin, "accuracy": accuracy}
            record = {"kind": "validation", "step": step, "losses": {"pairs": 0.7}, "rewards": {"pairs": means}}
            file.write(json.dumps(record) + "\n")
    run = read_run(folder)
    assert tables.preference_table([run]).rows == (("pairs", "0.5000", "0.7500", "0.0000", "1.5000", "1.5000", "–"),)
    assert "Accuracy is the fraction" in render([run], []).html


def add_records(folder: Path, *records: dict[str, Any]) -> Path:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return folder


def test_preference_tasks_have_pictures_of_rewards_margin_and_accuracy(tmp_path: Path) -> None:
    means = {"chosen": 0.25, "rejected": -0.5, "margin": 0.75, "accuracy": 0.5}
    record = {"step": 3, "losses": {"pairs": 0.7}, "rewards": {"pairs": means}}
    run = read_run(
        add_records(write_run(tmp_path / "run"), *({"kind": kind, **record} for kind in ("train", "validation")))
    )
    titles = [chart.title for chart in charts.preference_charts([run])]
    assert titles == [f"pairs: {name}" for name in ("accuracy", "margin", "reward of chosen", "reward of rejected")]
    assert "loss of a pair" in charts.loss_charts([run])[2].svg and "nats a token" in charts.loss_charts([run])[0].svg
    assert all(title in render([run], []).html for title in titles)


def test_a_task_of_sampled_answers_has_a_table_and_pictures_of_its_rewards(tmp_path: Path) -> None:
    """KL is off in the first run, and no token is clipped there."""
    runs = []
    for name, clipped, divergence in (("off", 0.0, 0.0), ("on", 0.25, 0.125)):
        steps = [
            {"kind": "train", "step": step, "losses": {"practice": 1 - reward}}
            | {"rewards": {"practice": {"reward": reward, "clipped": clipped, "divergence": divergence * step}}}
            for step, reward in enumerate((0.25, 0.75, 0.5), start=3)
        ]
        runs.append(read_run(add_records(write_run(tmp_path / name), *steps)))
    assert tables.rollout_table(runs).rows == (
        ("practice", "off", "0.2500", "0.5000", "0.7500", "0.00%", "off"),
        ("practice", "on", "0.2500", "0.5000", "0.7500", "25.00%", "0.6250"),
    )
    assert [chart.title for chart in charts.rollout_charts(runs[:1])] == ["practice: mean reward"]
    assert len(charts.rollout_charts(runs)) == 3
    assert "KL of the last step" in render(runs, []).markdown and not tables.preference_table(runs).rows


def improved(folder: Path, *rewards: float | None) -> Path:
    """The folder of an `mft improve`, of which 2 in 8 answers pass in each round."""
    folder.mkdir()
    rounds = [
        {"number": number, "problems": 4, "rollouts": 8, "passed": 2, "solved": {"none": 3, "some": 0, "all": 1}}
        | {"kept": 5, "left_out": {"equal": 1, "cut": 0}, "mean_reward": reward}
        for number, reward in enumerate(rewards, start=1)
    ]
    (folder / "improve.json").write_text(json.dumps({"rounds": rounds}))
    for name in ("base", "round-1"):
        (folder / name / "scores").mkdir(parents=True)
        write_metrics(folder / name / "scores" / f"metrics_exam-write_{name}.json", **{"pass@1": 0.5})
    return folder


def test_the_rounds_of_an_improvement_have_their_share_of_passing_answers_and_of_groups_without_a_signal(
    tmp_path: Path,
) -> None:
    folder = improved(tmp_path / "better", 0.125, 0.25)
    write_run(folder / "run")
    found = read_improvement(folder)
    assert found is not None and found.runs == (folder / "run",)
    assert [path.parts[-3] for path in found.metrics] == ["base", "round-1"]
    first = ("better", "1", "8", "25.0%", "3", "0", "1", "0.1250", "1 (25%)", "5")
    assert tables.rounds_table([found]).rows[0] == first
    drawn = [chart.title for chart in charts.round_charts([found])]
    assert drawn == ["answers that pass", "mean reward", "groups without a signal"]
    page = render(read_runs(list(found.runs)), read_scores(list(found.metrics)), improvements=[found])
    assert all(title in page.html for title in drawn) and "groups without a signal" in page.markdown


def test_expert_iteration_has_a_run_for_each_round_and_no_rewards(tmp_path: Path) -> None:
    folder = improved(tmp_path / "improved", None, None)
    runs = tuple(write_run(folder / f"round-{number}" / "run") for number in (1, 2))
    found = read_improvement(folder)
    assert found is not None and found.runs == runs
    assert tables.rounds_table([found]).rows[1] == ("improved", "2", "8", "25.0%", "3", "0", "1", "5")
    assert [chart.title for chart in charts.round_charts([found])] == ["answers that pass"]
    assert read_improvement(runs[0]) is None


def test_the_runs_table_computes_missing_summary_values_from_the_records(tmp_path: Path) -> None:
    (row,) = tables.runs_table([read_run(write_run(tmp_path / "run"))]).rows
    assert row == ("run", "2", "5 s", "200", "–", "–", "not finished")


def test_the_data_table_shows_what_is_there_and_hides_columns_of_zeros(tmp_path: Path) -> None:
    statistics = {"tests": {"samples": 1200, "split": 0, "truncated": 0, "fill": 0.987, "own_count": 3, "note": "x"}}
    table = tables.data_table([read_run(write_run(tmp_path / "run", data={"tasks": statistics}))])
    assert table.columns == ("task", "samples", "fill", "truncated", "own count")
    assert table.rows == (("tests", "1,200", "98.7%", "0", "3"),)


def test_scores_compare_each_model_with_the_first_of_its_benchmark(tmp_path: Path) -> None:
    before = {"value": 0.2, "low": 0.1, "high": 0.3, "problems": 50}
    names = ("mini_base", "mini_tuned", "mbpp_tuned")
    base, tuned, mbpp = (tmp_path / f"metrics_{name}.json" for name in names)
    write_metrics(base, task="mini", model="/models/base", scores={"pass@1": before})
    write_metrics(tuned, task="mini", model="tuned", scores={"pass@1": {**before, "value": 0.3, "low": None}})
    write_metrics(mbpp, **{"pass@1": 0.1, "pass@10": 0.4})
    files = [base, tuned, mbpp]
    rows = tables.scores_table(read_scores(files)).rows
    assert rows == (
        ("mini", "base", "pass@1", "20.0%", "10.0% – 30.0%", "", "50"),
        ("mini", "tuned", "pass@1", "30.0%", "–", "+10.0 points", "50"),
        ("mbpp", "tuned", "pass@1", "10.0%", "–", "", "–"),
        ("mbpp", "tuned", "pass@10", "40.0%", "–", "", "–"),
    )


def test_files_without_scores_are_named_together(tmp_path: Path) -> None:
    wrong = [write_metrics(tmp_path / "metrics_a.json", loss=1), tmp_path / "metrics_none.json"]
    with pytest.raises(DataError) as caught:
        read_scores(wrong)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "it holds no pass@k; give a metrics file that mft evaluate wrote",
        "no such file",
    ]


def test_scores_with_half_a_character_in_a_name_are_refused(tmp_path: Path) -> None:
    file = write_metrics(tmp_path / "metrics_mini_a.json", task="mini", model="\ud800", **{"pass@1": 0.5})
    with pytest.raises(DataError, match="a text holds half of a surrogate pair"):
        read_scores([file])


def test_metrics_are_found_in_the_run_folder_and_below(tmp_path: Path) -> None:
    (tmp_path / "metrics_tuned").mkdir()
    paths = [tmp_path / "metrics_mini_tuned.json", tmp_path / "metrics_tuned" / "metrics_mbpp_tuned.json"]
    for path in paths:
        path.write_text("{}")
    assert find_metrics(tmp_path) == sorted(paths)


def test_the_page_is_one_file_without_links_and_follows_the_colour_scheme(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", weights=(0.7, 0.3))])
    page = render(runs, []).html
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page.replace("xlink:href", "href"))
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    assert "var(--series-2)" in page
    assert not re.search(r"(?:stroke|fill): #", page)


def test_each_task_and_each_moving_balance_has_a_chart(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "still"), write_run(tmp_path / "moving", weights=(0.7, 0.3))])
    assert [chart.title for chart in charts.loss_charts(runs)] == ["tests", "repair"]
    assert [chart.title for chart in charts.weight_charts(runs)] == ["moving"]
    assert tables.constant_weights(runs) == ["still: the weights did not change: tests 0.5, repair 0.5."]


def test_each_k_has_a_chart_with_a_row_a_benchmark_and_a_mark_a_model(tmp_path: Path) -> None:
    known = {"pass@1": {"value": 0.25, "low": 0.1, "high": 0.5}, "pass@10": 0.5}
    files = [
        write_metrics(tmp_path / f"metrics_{task}_{model}.json", task=task, model=model, scores=known)
        for task in ("mini", "mbpp")
        for model in ("old", "new")
    ]
    one, ten = charts.score_charts(read_scores(files))
    assert (one.title, ten.title) == ("pass@1 with its 95% interval", "pass@10 with its 95% interval")
    assert one.series == ten.series == ("old", "new")
    assert "mini" in one.svg and "mbpp" in one.svg
    assert one.svg.count("var(--series-2)") > ten.svg.count("var(--series-2)") > 0, "no line without an interval"
    assert charts.score_charts([]) == []


def test_the_balance_picture_shows_where_each_task_is_best(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "validation", "step": 4, "losses": {"tests": 1.6, "repair": 0.8}}) + "\n")
    run = read_run(tmp_path / "run")
    assert tables.minima_spread([run]) == ["run: the tasks are at their best between step 2 and step 4, 2 steps apart."]
    (chart,) = charts.minima_chart([run])
    assert chart.series == ("tests", "repair")
    assert charts.lowest([(0.0, 2.0), (1.0, 1.0), (2.0, 1.0)]) == 1.0
    assert charts.lowest([]) is None


def test_names_that_look_like_markup_are_escaped(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), name="<script>|$x$")
    pages = render([run], [])
    assert "<script>" not in pages.html
    assert "| &lt;script>\\|$x$ |" in pages.markdown


def test_the_markdown_tables_have_as_many_cells_as_columns(tmp_path: Path) -> None:
    text = render([read_run(write_run(tmp_path / "run", versions={"torch": "2.13.0"}))], []).markdown
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert render([run], []) == render([run], [])


def test_long_curves_are_averaged_into_few_points() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = charts.thinned(points)
    assert len(thin) == 200
    assert thin[0] == (2.0, pytest.approx(0.4))
    assert charts.thinned(points[:7]) == points[:7]
    assert charts.thinned([]) == []


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1250, "1,250"), (0.75, "0.75"), (5e-5, "5e-5"), (2e-4, "2e-4")])
def test_ticks_are_short(value: float, text: str) -> None:
    assert charts.tick(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")])
def test_durations_are_words(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
