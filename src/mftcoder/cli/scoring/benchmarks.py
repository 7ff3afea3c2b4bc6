"""`mft benchmarks`."""

from pathlib import Path

import click

from mftcoder.cli.options import data_dir


@click.command("benchmarks", short_help="List the benchmarks.")
@click.argument("pattern", required=False)
@data_dir
def command(pattern: str | None, data_dir: Path | None) -> None:
    """List the benchmarks whose name contains PATTERN: size, language, licence, data, toolchain.

    \b
    mft benchmarks
    mft benchmarks rust --data-dir data
    """
    from mftcoder.app.scoring.benchmarks import list_benchmarks

    list_benchmarks(data_dir, pattern)
