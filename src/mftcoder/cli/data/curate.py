"""`mft data curate`."""

from pathlib import Path

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import PATH


@click.command("curate", short_help="Filter, deduplicate and decontaminate records by a recipe.")
@click.argument("recipe", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
def command(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Take the records of a recipe through its steps, into a folder that `mft train` reads.

    Every dropped record is named in dropped.jsonl with its rule and measured value. A stopped command goes on where it was.

    \b
    mft data curate recipes/evol_66k.yaml
    mft data curate my.yaml output_dir=data/clean num_proc=4
    """
    from mftcoder.app.data.curate import curate_recipe

    with shown(stderr=True):
        curate_recipe(recipe, overrides)
