"""`mft evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.app.scoring.options import EvaluateOptions
from mftcoder.cli.console import console, shown
from mftcoder.cli.options import COUNT, LARGEST, PATH, Finite, WholeNumbers, data_dir, limit
from mftcoder.errors import UnjudgedError

if TYPE_CHECKING:
    from mftcoder.app.scoring.evaluate import Score


@click.command("evaluate", short_help="Run answers against their tests and score them.")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--task", help="Benchmark (default: from the file's name, generations_TASK_MODEL.json).")
@data_dir
@click.option("--out", type=PATH, help="Output directory for metrics and results (default: beside each file).")
@click.option(
    "-k",
    type=WholeNumbers(1),
    default=",".join(map(str, EvaluateOptions.k)),
    metavar="N,...",
    help="pass@k for each of these k.",
)
@click.option("--workers", type=COUNT, help="Programs run at the same time (default: one per core).")
@click.option("--timeout", type=Finite(min=0, min_open=True), help="Seconds per program (default: the benchmark's).")
@click.option(
    "--memory-mb", type=click.IntRange(64, LARGEST), default=EvaluateOptions.memory_mb, help="Megabytes per program."
)
@click.option("--sandbox", default=EvaluateOptions.sandbox, help="container, namespaces, process, or auto.")
@limit
@click.option(
    "--imports",
    type=click.Choice(["none", "reference"]),
    help="Imports before a Python answer: none, or those of the reference harness. HumanEval, MBPP (default: none).",
)
def command(files: tuple[Path, ...], k: tuple[int, ...], **options: Any) -> None:
    """Run the answers in FILE... against their tests, isolated, and write the scores.

    A FILE is a JSON list (one entry per problem) of lists of texts (one per sample), or JSON Lines with task_id and
    generation or completion. An answer may be a bare completion or a whole function; it may repeat the prompt or stand
    in a fenced block. The same command continues a stopped one.

    \b
    mft evaluate generations_humaneval_my.json --data-dir data
    mft evaluate samples.jsonl --task humaneval --data-dir data --out scores -k 1,10
    mft evaluate generations_mini_my.json --task mini --timeout 5 --workers 2
    mft evaluate generations_humaneval_my.json --data-dir data --imports reference
    """
    run_evaluation(files, k=k, **options)


def run_evaluation(files: Sequence[Path], **options: Any) -> None:
    """Evaluate, and print the table of the scores, of those that were judged if not all were."""
    from mftcoder.app.scoring.evaluate import evaluate

    try:
        with shown(stderr=True, bars_in_files=True) as on_progress:
            scores = evaluate(files, on_progress=on_progress, **options)
    except UnjudgedError as error:
        print_scores(error.scores)
        raise
    print_scores(scores)


def print_scores(scores: "Sequence[Score]") -> None:
    """A table on standard output, a row a score."""
    from mftcoder.reporting.terminal import print_table_with_names

    rows = [
        (
            score.task,
            score.model,
            f"pass@{item.k}",
            f"{item.value:.4f}",
            f"{item.low:.3f}-{item.high:.3f}",
            str(item.problems),
            f"{item.samples_per_problem:g}",
        )
        for score in scores
        for item in score.scores
    ]
    titles = ("task", "model", "score", "value", "95% interval", "size", "n")  # size: problems, n: samples a problem
    print_table_with_names(console(), titles, rows, "model", numbers=("value", "size", "n"))
