"""`mft evaluate`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.options import COUNT, LARGEST, PATH, Finite, WholeNumbers, data_dir, limit


@click.command("evaluate", short_help="Run answers against their tests and score them.")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--task", help="Benchmark (default: from the file's name, generations_TASK_MODEL.json).")
@data_dir
@click.option("--out", type=PATH, help="Output directory for metrics and results (default: beside each file).")
@click.option(
    "-k", type=WholeNumbers(1), default="1", show_default=True, metavar="N,...", help="pass@k for each of these k."
)
@click.option("--workers", type=COUNT, help="Programs run at the same time (default: one per core).")
@click.option("--timeout", type=Finite(min=0, min_open=True), help="Seconds per program (default: the benchmark's).")
@click.option(
    "--memory-mb", type=click.IntRange(64, LARGEST), default=1024, show_default=True, help="Megabytes per program."
)
@click.option("--sandbox", default="auto", show_default=True, help="container, namespaces, process, or auto.")
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
    from mftcoder.app.scoring.evaluate import EvaluateOptions, evaluate

    evaluate(files, EvaluateOptions(k=tuple(sorted(k)), **options))
