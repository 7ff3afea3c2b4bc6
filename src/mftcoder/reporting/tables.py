"""The tables of a report as formatted text, the same for HTML and Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mftcoder.reporting.charts import lowest, weighted_tasks
from mftcoder.reporting.paired import Change, p_text
from mftcoder.reporting.run_folder import Improvement, RunRecord, number, series
from mftcoder.reporting.scores import Score

DATA_COLUMNS = {
    "records": "records",
    "samples": "samples",
    "trained_tokens": "trained tokens",
    "rows": "rows",
    "fill": "fill",
    "validation_samples": "validation samples",
    "validation_tokens": "validation tokens",
    "truncated": "truncated",
    "split": "split",
    "dropped": "dropped",
    "untrained": "nothing to train",
    "skipped": "skipped",
    "problems": "problems",
    "duplicates": "duplicates",
    "fim": "FIM",
}
"""Statistics in the order of the table; others come after them under their own names."""
REWARD_COLUMNS = ("accuracy", "margin", "chosen", "rejected")
ROLLOUT_COLUMNS = ("reward", "clipped", "divergence")
ALWAYS_SHOWN = ("samples", "trained_tokens", "validation_samples", "truncated", "dropped")


@dataclass(frozen=True)
class Table:
    """Column titles, rows of texts, and the number of columns at the left that are names (the others are numbers)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """One row per run: its length, its speed, and why it ended."""
    rows = []
    for run in runs:
        seconds = number(run.summary.get("seconds")) or sum(value for _, value in series(run.train, "seconds"))
        best = run.summary.get("best") or {}
        speeds = [value for _, value in series(run.train, "tokens_per_second")]
        steps = number(run.summary.get("steps")) or max((step for step, _ in series(run.train, "loss")), default=0)
        rows.append(
            (
                run.name,
                f"{steps:,.0f}",
                duration(seconds),
                f"{median(speeds):,.0f}" if speeds else "–",
                decimals(number(best.get("value"))),
                whole(number(best.get("step"))),
                str(run.summary.get("stopped_because", "not finished")).replace("_", " "),
            )
        )
    columns = ("run", "steps", "time", "tokens/s (median)", "best metric", "at step", "ended by")
    return Table(columns, tuple(rows))


def loss_table(runs: Sequence[RunRecord]) -> Table:
    """One row per task and run: validation loss before, after and best, and the step of the best."""
    rows = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for run in runs:
            points = series(run.validation, "losses", task)
            if points:
                first, last = points[0][1], points[-1][1]
                step, best = min(points, key=lambda point: (point[1], point[0]))
                change = f"{(last - first) / first:+.1%}" if first else "–"
                rows.append((task, run.name, decimals(first), decimals(last), change, decimals(best), whole(step)))
    columns = ("task", "run", "before", "after", "change", "best", "best at step")
    return _without_lone_run(Table(columns, tuple(rows), names=2), runs)


def preference_table(runs: Sequence[RunRecord]) -> Table:
    """One row per preference task and run: accuracy and margin of the validation before and after, and the rewards after."""
    rows = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for run in runs:
            points = _rewards(run.validation, task, REWARD_COLUMNS)
            if points["accuracy"]:
                ends = ((name, at) for name in ("accuracy", "margin") for at in (0, -1))
                cells = [decimals(points[name][at]) if points[name] else "–" for name, at in ends]
                after = [decimals(points[name][-1]) if points[name] else "–" for name in ("chosen", "rejected")]
                rows.append((task, run.name, *cells, *after))
    columns = ("task", "run", "accuracy before", "after", "margin before", "after", "reward of chosen", "of rejected")
    return _without_lone_run(Table(columns, tuple(rows), names=2), runs)


def rollout_table(runs: Sequence[RunRecord]) -> Table:
    """One row per task of sampled answers and run: the mean reward, the clipped tokens and the divergence (KL), from the training steps."""
    rows = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for run in runs:
            points = _rewards(run.train, task, ROLLOUT_COLUMNS)
            if rewards := points["reward"]:
                clipped = f"{sum(points['clipped']) / len(rewards):.2%}"
                far = points["divergence"]
                kl = decimals(far[-1]) if any(far) else "off"
                rows.append((task, run.name, *map(decimals, (rewards[0], rewards[-1], max(rewards))), clipped, kl))
    columns = (
        "task",
        "run",
        "reward of the first step",
        "of the last",
        "highest",
        "clipped tokens",
        "KL of the last step",
    )
    return _without_lone_run(Table(columns, tuple(rows), names=2), runs)


def _rewards(records: tuple[dict[str, Any], ...], task: str, columns: Sequence[str]) -> dict[str, list[float]]:
    """The values of each column of a task's rewards, over the steps."""
    return {name: [value for _, value in series(records, "rewards", task, name)] for name in columns}


def rounds_table(improvements: Sequence[Improvement]) -> Table:
    """One row per round of each `mft improve`: its answers, how many pass, what was trained, and (grpo) the groups without a signal."""
    groups = any(found.has_groups for found in improvements)
    rows = []
    for found in improvements:
        for entry in found.rounds:
            solved, problems = entry["solved"], entry["problems"]
            cells = [
                f"{entry['rollouts']:,}",
                f"{entry['passed'] / entry['rollouts']:.1%}",
                *map(whole, solved.values()),
            ]
            if groups:
                silent = f"{entry['left_out']['equal']:,} ({entry['left_out']['equal'] / problems:.0%})"
                cells += [decimals(number(entry["mean_reward"])), silent if found.has_groups else "–"]
            rows.append((found.name, str(entry["number"]), *cells, whole(entry["kept"])))
    signal = ("mean reward", "groups without a signal") if groups else ()
    columns = ("improvement", "round", "answers", "pass", "solved by none", "by some", "by all", *signal, "trained on")
    return Table(columns, tuple(rows), names=2)


def data_table(runs: Sequence[RunRecord]) -> Table:
    """One row per task and run: its counts in the store. Columns of zeros are left out, except ALWAYS_SHOWN."""
    entries = [
        (task, run.name, statistics)
        for run in runs
        for task, statistics in (run.data.get("tasks") or {}).items()
        if isinstance(statistics, dict)
    ]
    tasks = list(dict.fromkeys(task for task, _, _ in entries))
    entries.sort(key=lambda entry: tasks.index(entry[0]))
    known = [key for _, _, statistics in entries for key in statistics if number(statistics[key]) is not None]
    keys = [key for key in dict.fromkeys([*DATA_COLUMNS, *sorted(known)]) if key in known and key != "tokens"]
    keys = [key for key in keys if key in ALWAYS_SHOWN or any(entry[2].get(key) for entry in entries)]
    rows = tuple((task, name, *(_statistic(key, values.get(key)) for key in keys)) for task, name, values in entries)
    titles = (DATA_COLUMNS.get(key, key.replace("_", " ")) for key in keys)
    return _without_lone_run(Table(("task", "run", *titles), rows, names=2), runs)


def scores_table(scores: Sequence[Score]) -> Table:
    """One row per model: pass@k, its 95% interval, and the change from the first model of the same benchmark."""
    rows = []
    for score in scores:
        known = score.low is not None and score.high is not None
        interval = f"{score.low:.1%} – {score.high:.1%}" if known else "–"
        change = "" if score.change is None else f"{100 * score.change:+.1f} points"
        problems = "–" if score.problems is None else f"{score.problems:,}"
        rows.append((score.task, score.model, f"pass@{score.k}", f"{score.value:.1%}", interval, change, problems))
    columns = ("benchmark", "model", "metric", "score", "95% interval", "change", "problems")
    return Table(columns, tuple(rows), names=3)


def changes_table(changes: Sequence[Change]) -> Table:
    """One row per task: what each of two models solves, what was gained and lost, and whether that is more than chance."""
    rows = []
    for change in changes:
        count = len(change.passed)
        rows.append(
            (
                change.task,
                f"{count:,}",
                f"{change.before / count:.0%}",
                f"{change.after / count:.0%}",
                f"{len(change.gained):,}",
                f"{len(change.lost):,}",
                change.points,
                p_text(change.p).removeprefix("p = ").removeprefix("p "),
                "yes" if change.is_more_than_chance else "no",
            )
        )
    points = "change, points (95% interval)"
    columns = ("task", "problems", "before", "after", "gained", "lost", points, "p", "more than chance")
    return Table(columns, tuple(rows))


def versions_table(runs: Sequence[RunRecord]) -> Table:
    """One row per package, one column per run."""
    packages = dict.fromkeys(package for run in runs for package in run.versions)
    rows = tuple((package, *(_version(run.versions.get(package)) for run in runs)) for package in packages)
    return Table(("package", *(run.name for run in runs)), rows, names=1 + len(runs))


def constant_weights(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence for each run with constant task weights."""
    sentences = []
    for run in runs:
        weights = {
            task: {round(value, 9) for _, value in series(run.train, "weights", task)} for task in weighted_tasks(run)
        }
        if weights and all(len(values) <= 1 for values in weights.values()):
            held = ", ".join(f"{task} {min(values):.3g}" for task, values in weights.items() if values)
            sentences.append(f"{run.name}: the weights did not change: {held}.")
    return sentences


def minima_spread(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence for each run with several validations: the distance between its tasks' best steps."""
    sentences = []
    for run in runs:
        found = [lowest(series(run.validation, "losses", task)) for task in run.tasks]
        steps = [step for step in found if step is not None]
        if len(run.validation) > 1 and len(steps) > 1:
            least, most = min(steps), max(steps)
            steps_word = "step" if most - least == 1 else "steps"
            apart = f"between step {least:,.0f} and step {most:,.0f}, {most - least:,.0f} {steps_word} apart"
            when = apart if most > least else f"together, at step {least:,.0f}"
            sentences.append(f"{run.name}: the tasks are at their best {when}.")
    return sentences


def decimals(value: float | None) -> str:
    """A loss, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def whole(value: float | None) -> str:
    """A count, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s`, `12 s`."""
    total = round(seconds)
    if total >= 3600:
        return f"{total // 3600} h {total % 3600 // 60:02} min"
    return f"{total // 60} min {total % 60:02} s" if total >= 60 else f"{total} s"


def _statistic(key: str, value: Any) -> str:
    found = number(value)
    if found is None:
        return "–"
    return f"{found:.1%}" if key == "fill" else f"{found:,.6g}" if found != int(found) else f"{found:,.0f}"


def _version(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def _without_lone_run(table: Table, runs: Sequence[RunRecord]) -> Table:
    """The table without the column of run names if there is only one run."""
    if len(runs) > 1:
        return table
    return Table((table.columns[0], *table.columns[2:]), tuple((row[0], *row[2:]) for row in table.rows), names=1)


_CHECKSUM = re.compile(r"sha256 (\w+)")


def card_notes(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """A sentence for each task with data cards."""
    several = len(runs) > 1
    return tuple(
        f"{f'{run.name}: ' if several else ''}data card of {task}: {', '.join(facts['cards'])}"
        for run in runs
        for task, facts in _curation(run).items()
        if facts.get("cards")
    )


def undecontaminated(runs: Sequence[RunRecord], scores: Sequence[Score]) -> tuple[str, ...]:
    """A sentence for each run and benchmark with tasks that the benchmark was not kept out of."""
    exams = dict.fromkeys((score.task, score.source) for score in scores)
    found = []
    for run in runs:  # a run of an older version says nothing of its data
        for exam, source in exams:
            tasks = [task for task, facts in _curation(run).items() if not _is_kept_out(facts, exam, source)]
            if tasks:
                found.append(
                    f"{run.name} was trained on {', '.join(tasks)}, never decontaminated against {exam}: the score may count remembered "
                    f"answers. `mft data decontaminate --benchmarks {exam}` drops what holds its problems."
                )
    return tuple(found)


def _is_kept_out(facts: Mapping[str, Any], exam: str, source: str) -> bool:
    """Whether this exam was kept out of a task: the same name, and no other checksum where both sides have one.

    `mft data mine` itself holds an exam of your own code out of what it mines, so that counts for data without a card.
    """
    exams = facts.get("exams") or {}
    if exam not in exams:
        return exam.startswith("exam-") and not facts.get("cards")
    then, now = (_CHECKSUM.search(text) for text in (exams[exam], source))
    return then is None or now is None or then[1] == now[1]


def _curation(run: RunRecord) -> Mapping[str, Any]:
    found = run.data.get("curation")
    return found if isinstance(found, dict) else {}
