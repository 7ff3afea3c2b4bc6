"""A comparison of methods as one page of tables and charts, in HTML and Markdown. `comparison.py` computes the numbers."""

from collections.abc import Callable, Sequence
from statistics import fmean

from mftcoder.reporting import charts
from mftcoder.reporting.charts import Chart, Line
from mftcoder.reporting.comparison import Estimate, MethodResult
from mftcoder.reporting.page import Pages, Part, render_parts
from mftcoder.reporting.run_folder import RunRecord, series
from mftcoder.reporting.tables import Table

READING = (
    "Losses are validation losses in nats a token. Best: the lowest a task reached at any validation. Kept: its loss in the one "
    "checkpoint with the lowest mean over tasks. Against alone: relative to the best of the task trained by itself on the same "
    "number of its rows, same seed; below 0 is better than alone.",
    "Rank: mean place by best loss over tasks and seeds. Spread: distance between the first and the last task's best step, as a "
    "fraction of the run. Compromise: how far the kept losses are above each task's best. Regression: the same for the last losses. "
    "Step time: relative to uniform, with balancing, without validation. On a busy machine it is noisy; the fraction of the step "
    "time that was measured for balancing is more reliable. Means over seeds ± standard deviation.",
)


def render_comparison(
    results: Sequence[MethodResult],
    runs: dict[str, list[RunRecord]],
    alone: dict[str, float],
    command: str,
) -> Pages:
    """The page of these results. `runs` has each method's runs in the order of the seeds, `alone` each task's reference."""
    first = [method_runs[0] for method_runs in runs.values()]
    everything = [run for method_runs in runs.values() for run in method_runs]
    parts = [
        Part("Methods", (*READING, f"Made by `{command}`."), methods_table(results)),
        Part("Best loss of each task against training it alone", (), tasks_table(results, "best")),
        Part("Kept loss of each task against training it alone", (), tasks_table(results, "kept")),
        Part(
            "When each task was at its best",
            ("Balancing should bring the marks close together.",),
            None,
            tuple(charts.minima_chart(everything)),
        ),
        Part(
            "Validation losses",
            ("Means over seeds. The horizontal line is the best loss of the task trained alone.",),
            None,
            tuple(_loss_charts(runs, alone)),
        ),
        Part("Weights", ("Task weights of the first seed.",), None, tuple(charts.weight_charts(first))),
    ]
    return render_parts("Comparison of balancers", "mft compare", parts, first)


def methods_table(results: Sequence[MethodResult]) -> Table:
    """One row per method, with the numbers of its balance and its cost."""
    columns: dict[str, Callable[[MethodResult], str]] = {
        "method": lambda r: r.name,
        "seeds": lambda r: str(r.seeds),
        "best against alone": lambda r: _mean_percent(r.best_against_alone),
        "kept against alone": lambda r: _mean_percent(r.kept_against_alone),
        "kept loss": lambda r: _number(r.kept_loss, 4),
        "rank": lambda r: _number(r.rank, 2),
        "spread": lambda r: _percent(r.spread, 0),
        "compromise": lambda r: _percent(r.compromise),
        "regression": lambda r: _percent(r.regression),
        "step time": lambda r: _number(r.step_time_against_uniform, 3),
        "balancing": lambda r: _percent(r.balancing_share),
    }
    return Table(tuple(columns), tuple(tuple(cell(result) for cell in columns.values()) for result in results))


def tasks_table(results: Sequence[MethodResult], which: str) -> Table:
    """One row per task, one column per method: the best or kept loss relative to training the task alone."""
    found = {r.name: r.best_against_alone if which == "best" else r.kept_against_alone for r in results}
    tasks = list(dict.fromkeys(task for estimates in found.values() for task in estimates))
    rows = tuple((task, *(_percent(estimates[task], sign=True) for estimates in found.values())) for task in tasks)
    return Table(("task", *found), rows)


def _loss_charts(runs: dict[str, list[RunRecord]], alone: dict[str, float]) -> list[Chart]:
    names = list(runs)
    tasks = list(dict.fromkeys(task for method_runs in runs.values() for run in method_runs for task in run.tasks))
    pictures = []
    for task in tasks:
        lines = [Line(name, _mean_curve(runs[name], task), slot) for slot, name in enumerate(names)]
        if task in alone and lines[0].points:
            steps = [step for step, _ in lines[0].points]
            lines.append(Line("alone", [(steps[0], alone[task]), (steps[-1], alone[task])], len(names), faint=True))
        pictures.append(charts.draw(task, lines, "loss, nats a token"))
    return pictures


def _mean_curve(runs: Sequence[RunRecord], task: str) -> list[tuple[float, float]]:
    curves = [dict(series(run.validation, "losses", task)) for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, fmean(curve[step] for curve in curves)) for step in shared]


def _number(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "–"
    deviation = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def _percent(value: Estimate, digits: int = 1, *, sign: bool = False) -> str:
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.{digits}f}"
    return f"{100 * value.mean:{'+' if sign else ''}.{digits}f}{deviation}%"


def _mean_percent(estimates: dict[str, Estimate]) -> str:
    return f"{100 * fmean(e.mean for e in estimates.values()):+.1f}%" if estimates else "–"
