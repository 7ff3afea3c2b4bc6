"""`mft data filter`."""

from pathlib import Path

import click

from mftcoder.cli.data.curate import run_step
from mftcoder.cli.options import Names, paths_to_out


@click.command("filter", short_help="Keep records that are inside the bounds of rules.")
@paths_to_out
@click.option("--rules", type=Names(), default="general", help="A preset, or names of rules.")
def command(paths: tuple[Path, ...], out: Path, rules: tuple[str, ...]) -> None:
    """Filter the records in PATHS; each path is a task. Bounds other than the default ones need a recipe.

    \b
    mft data filter data/chat data/tests --out data/clean
    mft data filter data/evol --rules evol_66k --out data/evol-66k
    mft data filter data/chat --rules broken_python,refusals --out data/clean
    """
    run_step(paths, out, {"filter": rules[0] if len(rules) == 1 and rules[0] in PRESETS else list(rules)})


PRESETS = ("evol_66k", "general")
