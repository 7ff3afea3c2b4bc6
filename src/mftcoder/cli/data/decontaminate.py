"""`mft data decontaminate`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.data.curate import run_step
from mftcoder.cli.options import PATH, Names, data_dir, paths_to_out


@click.command("decontaminate", short_help="Drop records that hold a problem of an exam.")
@paths_to_out
@click.option(
    "--benchmarks",
    type=Names(),
    default=(),
    show_default=False,
    metavar="NAME,...",
    help="Benchmarks or groups of `mft benchmarks`.",
)
@click.option("--against", type=PATH, multiple=True, help="A file or folder of JSONL with problems of your own.")
@click.option("--rules", type=click.Choice(["default", "published"]), default="default", help="What a hit is.")
@data_dir
def command(
    paths: tuple[Path, ...], out: Path, against: tuple[Path, ...], data_dir: Path | None, **options: Any
) -> None:
    """Decontaminate the records in PATHS; each path is a task.

    \b
    mft data decontaminate data/chat --benchmarks humaneval,mbpp --out data/clean
    mft data decontaminate data/chat --against data/exam --out data/clean
    """
    folder = {"data_dir": str(data_dir)} if data_dir else {}
    run_step(paths, out, {"decontaminate": {**options, "files": list(map(str, against)), **folder}})
