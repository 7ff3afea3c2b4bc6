"""`mft data dedup`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.data.curate import run_step
from mftcoder.cli.options import Finite, paths_to_out


@click.command("dedup", short_help="Keep one of the records that are equal or alike.")
@paths_to_out
@click.option("--threshold", type=Finite(0.6, 1), default=0.7, help="Jaccard similarity of duplicates.")
@click.option("--exact", is_flag=True, help="Drop exact duplicates only.")
@click.option("--keep", type=click.Choice(["longest", "first"]), default="longest", help="Which one is kept.")
@click.option("--within", type=click.Choice(["all", "task"]), default="all", help="What is compared.")
@click.option(
    "--code",
    type=click.Choice(["as_written", "renamed"]),
    default="as_written",
    help="renamed: compare code without its names, comments and layout.",
)
def command(paths: tuple[Path, ...], out: Path, exact: bool, **options: Any) -> None:
    """Deduplicate the records in PATHS; each path is a task.

    \b
    mft data dedup data/chat data/tests --out data/clean
    mft data dedup data/chat --exact --out data/clean
    mft data dedup data/chat --code renamed --out data/clean
    """
    run_step(paths, out, {"dedup": {**options, "near": not exact}})
