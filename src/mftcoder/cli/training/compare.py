"""`mft compare`."""

from pathlib import Path

import click

from mftcoder.cli.options import COUNT, Names, WholeNumbers, config_arguments


@click.command("compare", short_help="Compare balancers on the same data.")
@config_arguments
@click.option(
    "--balancers",
    type=Names(),
    default="uniform,coba,pace",
    show_default=True,
    metavar="NAME[:OPTION=VALUE]...,...",
    help="Balancers to compare, each with options if wanted.",
)
@click.option(
    "--seeds", type=WholeNumbers(), default="0", show_default=True, metavar="SEED,...", help="One run of each per seed."
)
@click.option(
    "--alone/--no-alone", default=True, help="Also train every task by itself, as the reference.  [default: on]"
)
@click.option(
    "--jobs", type=COUNT, default=1, show_default=True, help="Runs at the same time. Step times are exact only with 1."
)
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
    from mftcoder.app.training.compare import compare_balancers

    if not balancers:
        raise click.UsageError("--balancers: names of balancers, separated by commas, are expected")
    compare_balancers(config, overrides, balancers, seeds, alone=alone, jobs=jobs)
