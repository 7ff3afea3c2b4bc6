"""`mft compare`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mftcoder.cli.console import console, hint_with_command, loaded_config, shown, typed_command
from mftcoder.cli.options import COUNT, Names, WholeNumbers, config_arguments

if TYPE_CHECKING:
    from mftcoder.app.training.compare import Comparison


@click.command("compare", short_help="Compare balancers on the same data.")
@config_arguments
@click.option(
    "--balancers",
    type=Names(),
    default="uniform,coba,pace",
    metavar="NAME[:OPTION=VALUE]...,...",
    help="Balancers to compare, each with options if wanted.",
)
@click.option("--seeds", type=WholeNumbers(), default="0", metavar="SEED,...", help="One run of each per seed.")
@click.option(
    "--alone/--no-alone",
    default=True,
    show_default=False,
    help="Also train every task by itself, as the reference.  [default: on]",
)
@click.option("--jobs", type=COUNT, default=1, help="Runs at the same time. Step times are exact only with 1.")
def command(
    config: Path,
    overrides: tuple[str, ...],
    balancers: tuple[str, ...],
    seeds: tuple[int, ...],
    alone: bool,
    jobs: int,
) -> None:
    """Train the same data under several balancers and seeds. Write one table of how well each balances the tasks.

    The runs lie below output_dir. The same command continues a stopped comparison. Writes compare.html, .md and .json.

    \b
    mft compare my.yaml --balancers uniform,coba,pace --seeds 0,1,2
    mft compare my.yaml --balancers uniform,coba:update_interval=10,famo:variant=released --no-alone
    mft compare my.yaml train.max_steps=2000 output_dir=runs/longer
    """
    from mftcoder.app.training.compare import compare

    run_config = loaded_config(config, overrides)
    with shown(), hint_with_command():
        comparison = compare(run_config, balancers, seeds, alone=alone, jobs=jobs, command=typed_command())
    print_comparison(comparison)


def print_comparison(comparison: "Comparison") -> None:
    """The table on its side, because a column a method fits a terminal; then the files."""
    from rich.table import Table

    from mftcoder.reporting.comparison_page import methods_table

    table, output = methods_table(comparison.results), console()
    shown_table = Table()
    shown_table.add_column("")
    names, *measures = zip(*table.rows, strict=True)
    for name in names:
        shown_table.add_column(name, justify="right")
    for title, values in zip(table.columns[1:], measures, strict=True):
        shown_table.add_row(title, *values)
    output.print(shown_table)
    for suffix in (".html", ".md", ".json"):
        output.print(str(comparison.page.with_suffix(suffix)), highlight=False)
