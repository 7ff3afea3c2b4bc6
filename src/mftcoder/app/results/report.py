"""`mft report`: write report.html and report.md from run folders and metrics files. Trains nothing, scores nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

from mftcoder.benchmarks.catalogue import all_tasks, load
from mftcoder.benchmarks.problem import Asking, PromptMode
from mftcoder.errors import DataError
from mftcoder.jsonl import has_half_character, read_json, write_text
from mftcoder.log import warn
from mftcoder.reporting.page import Answer, Question, render
from mftcoder.reporting.paired import Change, read_changes
from mftcoder.reporting.run_folder import read_improvement, read_runs
from mftcoder.reporting.scores import find_metrics, read_scores
from mftcoder.reporting.tables import undecontaminated


def report(
    paths: Sequence[Path], *, out: Path | None = None, metrics: Sequence[Path] = (), data_dir: Path | None = None
) -> Path:
    """Write the page of the runs among `paths` and return its path. JSON files among them count as metrics files.

    The folder of an `mft improve` stands for its runs, its rounds and its scores. Without any metrics file, those in the folders are
    used. `out` is the HTML file; the Markdown file lies beside it. Answers are shown if the problems can be read without a network: from
    `data_dir` or from the package.
    """
    folders = [path for path in paths if path.suffix != ".json"]
    given = [*metrics, *(path for path in paths if path.suffix == ".json")]
    if not folders:
        raise DataError("no run folder given: mft report RUN... [--metrics FILE]")
    found = {folder: read_improvement(folder) for folder in folders}
    runs = read_runs([run for folder, one in found.items() for run in (one.runs if one else (folder,))])
    files = given or [path for folder, one in found.items() for path in (one.metrics if one else find_metrics(folder))]
    scores = read_scores(files)
    changes = read_changes(files)
    questions = [question for change in changes for question in _questions(change, data_dir)]
    for sentence in undecontaminated(runs, scores):
        warn(f"warning: {sentence}")
    pages = render(runs, scores, changes, questions, [one for one in found.values() if one])
    target = out or folders[0] / "report.html"
    write_text(target, pages.html)
    write_text(target.with_suffix(".md"), pages.markdown)
    return target


def _questions(change: Change, data_dir: Path | None) -> Iterator[Question]:
    """Some of the task's problems with both models' answers, if their files lie beside the metrics."""
    names = [path.name.removeprefix("metrics_") for path in change.paths]
    files = [path.with_name(f"generations_{name}") for path, name in zip(change.paths, names, strict=True)]
    settings = [path.with_name(f"settings_{name}") for path, name in zip(change.paths, names, strict=True)]
    task = all_tasks().get(change.task)
    at_hand = task is not None and (task.source is None or (data_dir is not None and task.source.local_file(data_dir)))
    if not at_hand or not all(path.is_file() for path in (*files, settings[1])):
        return
    before, after = (_answers(file, len(change.passed)) for file in files)
    asking = _asking(settings[1])
    benchmark = load(change.task, data_dir)
    problems = {problem.id: problem for problem in benchmark.problems}
    for number in change.shown:
        problem = problems.get(change.problems[number])
        if problem is None:
            raise DataError(f"{change.paths[1]}: problem {change.problems[number]} is not in {benchmark.source}")
        prompt = benchmark.prompt(problem, asking)
        answers = [
            Answer(model, texts[number][0], passed)
            for model, texts, passed in zip(change.models, (before, after), change.passed[number], strict=True)
        ]
        yield Question(change.task, problem.id, prompt, (answers[0], answers[1]))


def _answers(file: Path, count: int) -> list[list[str]]:
    """The answers to each of `count` problems. DataError for another file."""
    found = read_json(file)
    lists = isinstance(found, list) and len(found) == count and all(isinstance(one, list) and one for one in found)
    if not lists or not all(isinstance(text, str) for one in found for text in one) or has_half_character(found):
        raise DataError(
            f"{file}: must hold a list of texts for each of the {count} problems, as mft generate writes it"
        )
    return list(found)


def _asking(file: Path) -> Asking:
    """The prompt mode, prefix and suffix. DataError for another file."""
    asked = read_json(file)
    found = asked if isinstance(asked, dict) else {}
    mode, prefix, suffix = (found.get(name) for name in ("mode", "prefix", "suffix"))
    if mode not in get_args(PromptMode) or not isinstance(prefix, str) or not isinstance(suffix, str):
        raise DataError(f"{file}: must hold mode, prefix and suffix, as mft generate writes them")
    return Asking(cast(PromptMode, mode), prefix, suffix)
