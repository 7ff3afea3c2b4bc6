"""Runs and scores -> the text of report.html (one file, no external links, light and dark) and of report.md."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mftcoder import __version__
from mftcoder.reporting import charts, tables
from mftcoder.reporting.charts import Chart
from mftcoder.reporting.paired import METHODS, Change
from mftcoder.reporting.run_folder import Improvement, RunRecord
from mftcoder.reporting.scores import Score
from mftcoder.reporting.tables import Table


@dataclass(frozen=True)
class Answer:
    """A model's answer, and whether it passed."""

    model: str
    text: str
    passed: bool


@dataclass(frozen=True)
class Question:
    """A problem's prompt and the answers of two models."""

    task: str
    problem: str
    prompt: str
    answers: tuple[Answer, Answer]


@dataclass(frozen=True)
class Sample:
    """A data record: where it is from, what is known of it, and its texts."""

    origin: str
    facts: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class SampleGroup:
    """Samples under one title, folded."""

    title: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Part:
    """One part of the page: title, notes, table, charts, questions with their answers, samples, and long texts with titles, folded."""

    title: str
    notes: tuple[str, ...] = ()
    table: Table | None = None
    charts: tuple[Chart, ...] = ()
    questions: tuple[Question, ...] = ()
    samples: tuple[SampleGroup, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pages:
    """The two versions of a page."""

    html: str
    markdown: str


def render(
    runs: Sequence[RunRecord],
    scores: Sequence[Score],
    changes: Sequence[Change] = (),
    questions: Sequence[Question] = (),
    improvements: Sequence[Improvement] = (),
) -> Pages:
    """The report: runs side by side, scores, the changes from one model to another, and the rounds of `mft improve`."""
    parts = _parts(runs, scores, changes, questions, improvements)
    names = [*(one.name for one in improvements), *(run.name for run in runs)]
    return render_parts("Training report", " · ".join(names), parts, runs)


def render_parts(title: str, subtitle: str, parts: Sequence[Part], runs: Sequence[RunRecord]) -> Pages:
    """A page of these parts, with the configs and versions of the runs at its end. Empty parts are left out."""
    environment = Environment(
        loader=PackageLoader("mftcoder.reporting", "templates"),
        autoescape=lambda name: bool(name and name.startswith("report.html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: _TAG.sub("&lt;", str(text).replace("|", "\\|").replace("\n", " "))
    environment.filters["quoted"] = lambda text: textwrap.indent(str(text) or "(nothing)", "    ", lambda line: True)
    values: dict[str, Any] = {
        "title": title,
        "subtitle": subtitle,
        "version": __version__,
        "parts": [part for part in parts if _is_filled(part)],
        "runs": runs,
        "versions": tables.versions_table(runs),
    }
    html, markdown = (environment.get_template(f"report.{kind}.j2").render(values) for kind in ("html", "md"))
    return Pages(html, markdown)


_TAG = re.compile(r"<(?=[A-Za-z/!])")


def _is_filled(part: Part) -> bool:
    return bool(
        part.charts or part.questions or part.samples or part.texts or (part.table.rows if part.table else part.notes)
    )


def _parts(
    runs: Sequence[RunRecord],
    scores: Sequence[Score],
    changes: Sequence[Change],
    questions: Sequence[Question],
    improvements: Sequence[Improvement],
) -> list[Part]:
    balance = (*charts.minima_chart(runs), *charts.weight_charts(runs), *charts.slope_charts(runs))
    return [
        Part("Runs", _run_notes(runs), tables.runs_table(runs)),
        Part(
            "Scores",
            ("The change is against the first model of the same benchmark.", *tables.undecontaminated(runs, scores)),
            tables.scores_table(scores),
            tuple(charts.score_charts(scores)),
        ),
        Part("Before and after", (METHODS,), tables.changes_table(changes)),
        Part("Rounds", (_ROUNDS,), tables.rounds_table(improvements), tuple(charts.round_charts(improvements))),
        Part(
            "Losses",
            ("Validation loss with dots; training loss faint behind it. The table is of the validation loss.",),
            tables.loss_table(runs),
            tuple(charts.loss_charts(runs)),
        ),
        Part(
            "Preferences",
            ("Accuracy is the fraction of validation pairs whose chosen answer has the larger reward.",),
            tables.preference_table(runs),
            tuple(charts.preference_charts(runs)),
        ),
        Part("Rewards", (_REWARDS,), tables.rollout_table(runs), tuple(charts.rollout_charts(runs))),
        Part("Balance", (*tables.minima_spread(runs), *tables.constant_weights(runs)), None, balance),
        Part("Speed and schedule", (), None, tuple(charts.speed_charts(runs))),
        *(_answers_part(task, questions) for task in dict.fromkeys(question.task for question in questions)),
        Part("Data", tables.card_notes(runs), tables.data_table(runs)),
    ]


_REWARDS = (
    "The reward of a step is the mean over the answers that it trains, so groups without a signal are not in it. KL: how far a token's "
    "log-probability is from that of the untrained model."
)
_ROUNDS = "All answers that a round sampled, by the model of the round before. A group has no signal if all of its rewards are equal; it is left out."


def _answers_part(task: str, questions: Sequence[Question]) -> Part:
    note = (
        "The first problem that was gained, the first that was lost and the first that did not change, as far as there are any, "
        "then the next of each."
    )
    return Part(
        f"Answers: {task}", (note,), questions=tuple(question for question in questions if question.task == task)
    )


def _run_notes(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    return tuple(
        f"{run.name}: {run.torn_lines} line(s) of metrics.jsonl could not be read and are left out."
        for run in runs
        if run.torn_lines
    )
