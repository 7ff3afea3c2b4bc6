"""Small inline SVG charts of runs. Their colours come from the page: text uses `currentColor`, lines use variables.

Each chart is a separate picture, so that the page chooses the number of columns. Long training curves are averaged to at most
MAX_POINTS points. Lines differ in colour and in dashes.
"""

import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mftcoder.reporting.run_folder import Improvement, Record, RunRecord, series
from mftcoder.reporting.scores import Score

Points = list[tuple[float, float]]

MAX_POINTS = 200
INK = "#010203"  # stands for currentColor
SERIES_COLORS = [f"#0a0b{number:02x}" for number in range(8)]  # stand for var(--series-N)
MARKS = ["o", "s", "^", "D", "v", "P", "X", "*"]
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.16,
    "grid.color": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "mftcoder",
    "text.parse_math": False,  # a task may have a dollar sign in its name
}


@dataclass(frozen=True)
class Chart:
    """One picture and its title; `series` has the names of the lines in the order of their colours."""

    title: str
    svg: str
    series: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One curve. `slot` picks colour and dashes."""

    name: str
    points: Points
    slot: int
    faint: bool = False
    markers: bool = False


def score_charts(scores: Sequence[Score]) -> list[Chart]:
    """One chart per k: a row per benchmark, in it a mark per model with the 95% interval as a line. Scores are in percent."""
    return [_score_chart(k, [score for score in scores if score.k == k]) for k in sorted({score.k for score in scores})]


def _score_chart(k: int, scores: Sequence[Score]) -> Chart:
    tasks, models = (list(dict.fromkeys(getattr(score, name) for score in scores)) for name in ("task", "model"))

    def paint(axes: Axes) -> None:
        for score in scores:
            slot = models.index(score.model)
            height = tasks.index(score.task) + 0.6 * ((slot + 0.5) / len(models) - 0.5)
            color, mark, dash = (kinds[slot % len(kinds)] for kinds in (SERIES_COLORS, MARKS, DASHES))
            if score.low is not None and score.high is not None:
                axes.plot([100 * score.low, 100 * score.high], [height] * 2, color=color, linestyle=dash, linewidth=1.8)
            axes.plot([100 * score.value], [height], mark, color=color, markersize=6, clip_on=False)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("percent")
        axes.grid(axis="x")

    title = f"pass@{k} with its 95% interval"
    height = 1.0 + 0.16 * len(tasks) * (len(models) + 1)
    return picture(title, f"{title}, a row a benchmark, for {', '.join(models)}", tuple(models), paint, height=height)


def loss_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """One chart per task: each run's validation loss with dots, its training loss faint behind it."""
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    return [draw(task, _curves(runs, "losses", task), _loss_label(runs, task)) for task in tasks]


def _curves(runs: Sequence[RunRecord], *keys: str) -> list[Line]:
    """Each run's validation with dots, and its training faint behind it."""
    return [
        line
        for slot, run in enumerate(runs)
        for line in (
            Line(run.name, thinned(series(run.train, *keys)), slot, faint=True),
            Line(run.name, series(run.validation, *keys), slot, markers=True),
        )
    ]


def _loss_label(runs: Sequence[RunRecord], task: str) -> str:
    """What the task's loss is the mean of."""
    records = [record for run in runs for record in (*run.train, *run.validation)]
    names = {name for record in records for name in (record.get("rewards") or {}).get(task) or ()}
    if "reward" in names:
        return "1 - reward, estimated"
    return "loss of a pair" if "accuracy" in names else "loss, nats a token"


REWARD_CHARTS = {
    "accuracy": "accuracy",
    "margin": "margin",
    "chosen": "reward of chosen",
    "rejected": "reward of rejected",
}


def preference_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """For each preference task its accuracy, its margin and the rewards of both sides: validation with dots, training faint behind it."""
    return _filled(
        (f"{task}: {title}", _curves(runs, "rewards", task, key))
        for task in dict.fromkeys(task for run in runs for task in run.tasks)
        for key, title in REWARD_CHARTS.items()
    )


def rollout_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """For each task of sampled answers the mean reward of its steps, and the clipped tokens and the divergence (KL) if there are any."""
    charts = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for key, title in (("reward", "mean reward"), ("clipped", "fraction of clipped tokens"), ("divergence", "KL")):
            lines = _training(runs, "rewards", task, key)
            values = [value for line in lines for _, value in line.points]
            if any(values) or (values and key == "reward"):
                charts.append(draw(f"{task}: {title}", lines, from_zero=key != "reward"))
    return charts


def round_charts(improvements: Sequence[Improvement]) -> list[Chart]:
    """Over the rounds: the share of answers that pass, the mean reward, and the share of groups without a signal."""

    def lines(value: Callable[[dict[str, Any]], Any], *, groups: bool) -> list[Line]:
        kept = [found for found in improvements if found.has_groups or not groups]
        points = [[(float(entry["number"]), float(value(entry))) for entry in found.rounds] for found in kept]
        return [
            Line(found.name, of_one, slot, markers=True)
            for slot, (found, of_one) in enumerate(zip(kept, points, strict=True))
        ]

    kinds = {
        "answers that pass": lines(lambda entry: entry["passed"] / entry["rollouts"], groups=False),
        "mean reward": lines(lambda entry: entry["mean_reward"], groups=True),
        "groups without a signal": lines(lambda entry: entry["left_out"]["equal"] / entry["problems"], groups=True),
    }
    return [
        draw(title, drawn, "" if title == "mean reward" else "share", from_zero=True, over="round")
        for title, drawn in kinds.items()
        if any(line.points for line in drawn)
    ]


def weight_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """One chart per run: the weight of each task over the steps. None for a run with constant weights."""
    charts = []
    for run in runs:
        lines = _of_tasks(run, run.train, "weights")
        if any(len({round(value, 9) for _, value in line.points}) > 1 for line in lines):
            charts.append(draw(run.name, lines, "task weight"))
    return charts


def slope_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """One chart per run: the slope of each task's loss that its balancer measured. None for methods without slopes."""
    found = ((f"{run.name}: slopes", _of_tasks(run, run.balance, "signals", "slope")) for run in runs)
    return _filled(found, "change of loss a step")


def _of_tasks(run: RunRecord, records: tuple[Record, ...], *keys: str) -> list[Line]:
    """A line for each task of a run whose weights are known."""
    points = [(task, thinned(series(records, *keys, task))) for task in weighted_tasks(run)]
    return [Line(task, found, slot) for slot, (task, found) in enumerate(points)]


def weighted_tasks(run: RunRecord) -> list[str]:
    return list(dict.fromkeys(task for record in run.train for task in record.get("weights") or {}))


def speed_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Throughput, learning rate and gradient norm, with one line per run."""
    kinds = {"tokens a second": "tokens_per_second", "learning rate": "learning_rate", "gradient norm": "grad_norm"}
    return _filled(((title, _training(runs, key)) for title, key in kinds.items()), from_zero=True)


def _training(runs: Sequence[RunRecord], *keys: str) -> list[Line]:
    """A line for each run over its training steps."""
    return [Line(run.name, thinned(series(run.train, *keys)), slot) for slot, run in enumerate(runs)]


def _filled(titled: Iterable[tuple[str, list[Line]]], label: str = "", *, from_zero: bool = False) -> list[Chart]:
    """A chart for each title whose lines have points."""
    return [
        draw(title, lines, label, from_zero=from_zero) for title, lines in titled if any(line.points for line in lines)
    ]


def thinned(points: Points) -> Points:
    """At most MAX_POINTS points: the mean step and mean value of groups of consecutive points."""
    size = -(-len(points) // MAX_POINTS) or 1
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def minima_chart(runs: Sequence[RunRecord]) -> list[Chart]:
    """One row per run, with a mark per task at the step of its lowest validation loss. Marks close together mean balance."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    if len(tasks) < 2 or not any(len(run.validation) > 1 for run in runs):
        return []

    def paint(axes: Axes) -> None:
        for row, run in enumerate(runs):
            for slot, task in enumerate(tasks):
                # Different heights, so that marks at equal steps do not hide each other.
                height = row + 0.5 * (slot / (len(tasks) - 1) - 0.5)
                color, mark = SERIES_COLORS[slot % len(SERIES_COLORS)], MARKS[slot % len(MARKS)]
                step = lowest(series(run.validation, "losses", task))
                if step is not None:
                    axes.plot([step], [height], mark, color=color, markersize=6, clip_on=False)
        axes.set_yticks(range(len(runs)), [run.name for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(left=-0.5)
        axes.grid(visible=False)

    title = "step of each task's lowest loss"
    return [picture(title, f"{title}, a row a run", tuple(tasks), paint, over="step")]


def lowest(points: Points) -> float | None:
    """The step of the lowest value, the first of several; None without points."""
    return min(points, key=lambda point: (point[1], point[0]))[0] if points else None


def draw(title: str, lines: Sequence[Line], label: str = "", *, from_zero: bool = False, over: str = "step") -> Chart:
    """The lines over the steps, or rounds. Lines without points are in the legend only."""

    def paint(axes: Axes) -> None:
        for line in lines:
            if line.points:
                _plot(axes, line)
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        if from_zero:
            axes.set_ylim(bottom=0)

    names = tuple(dict.fromkeys(line.name for line in lines))
    description = f"{title}{label and ': '}{label} over {over}s, for {', '.join(names)}"
    return picture(title, description, names, paint, over=over)


def picture(
    title: str,
    description: str,
    names: tuple[str, ...],
    paint: Callable[[Axes], None],
    *,
    height: float = 2.7,
    over: str = "",
) -> Chart:
    """An SVG of what `paint` draws, 4.4 inches wide, with a description for screen readers. `over`: step or round, the x axis."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        if over:
            axes.set_xlabel(over)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(title, themed(stream.getvalue(), description), names)


def _plot(axes: Axes, line: Line) -> None:
    steps, values = zip(*line.points, strict=True)
    color, dash = SERIES_COLORS[line.slot % len(SERIES_COLORS)], DASHES[line.slot % len(DASHES)]
    marker = "o" if line.markers or len(steps) == 1 else None
    if line.faint:
        axes.plot(steps, values, color=color, linewidth=1, alpha=0.4, marker=marker, markersize=2.5)
    else:
        axes.plot(steps, values, color=color, linestyle=dash, linewidth=1.8, marker=marker, markersize=3.5)


def tick(value: float) -> str:
    """`1,250`, `0.75`, `5e-5`."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.6g}"


def themed(svg: str, description: str) -> str:
    """The picture without its file header, in the page's size, colours and font, with a description for screen readers."""
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    inner = inner.replace(INK, "currentColor")
    for number, color in enumerate(SERIES_COLORS, start=1):
        inner = inner.replace(color, f"var(--series-{number})")
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)  # ids of groups repeat between pictures, and nothing refers to them
    inner = re.sub(r"; font-family: [^;\"]*", "", inner)
    size = f'<svg width="100%" role="img" aria-label="{html.escape(description)}"'
    inner = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf"{size} \1", inner, count=1)
    return re.sub(r"\s*\n\s*", " ", inner)
