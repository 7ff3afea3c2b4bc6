"""`mft data curate`, and what the commands of one step print of a curated folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import PATH
from mftcoder.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from mftcoder.app.data.curate import Made

_RULES_SHOWN = 6


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

    with shown(stderr=True) as on_progress:
        made = curate_recipe(recipe, overrides, on_progress=on_progress)
    print_made(made)


def run_step(paths: Sequence[Path], out: Path, step: dict[str, Any]) -> None:
    """Take records through one step, and print what came of it."""
    from mftcoder.app.data.curate import curate_paths

    with shown(stderr=True) as on_progress:
        made = curate_paths(paths, out, step, on_progress=on_progress)
    print_made(made)


def print_made(made: "Made") -> None:
    """What each step dropped, what each task kept, and the section `tasks` for a run. DataError if nothing is left."""
    from mftcoder.reporting.terminal import print_list, print_table

    output, manifest = console(), made.manifest
    print_steps(output, manifest["steps"], most=_RULES_SHOWN)
    tasks = [[name, f"{task['read']:,}", f"{task['kept']:,}"] for name, task in manifest["tasks"].items()]
    output.print()
    print_table(output, ("task", "read", "kept"), tasks, numbers=("read", "kept"))
    if manifest["verdicts"]:
        found = [[row["step"], row["verdict"], f"{row['records']:,}"] for row in manifest["verdicts"]]
        output.print()
        print_table(output, ("step", "verdict", "records"), found, numbers=("records",))
    output.print()
    print_list(output, "notes:", manifest["notes"])
    for line in [
        *(f"{facts['records']:,} pairs of answers -> {facts['path']}" for facts in manifest["preferences"]),
        f"{manifest['kept']:,} of {manifest['read']:,} records -> {made.folder}",
        *made.task_lines(),
    ]:
        output.print(line, highlight=False, markup=False, soft_wrap=True)
    if not manifest["kept"]:
        raise DataError(f"{made.folder}: nothing is left to train on. Its README.md shows what each rule dropped")


def print_steps(output: "Console", steps: Sequence[Mapping[str, Any]], *, most: int | None = None) -> None:
    """What each step of a manifest dropped, with the `most` frequent rules, and left."""
    from mftcoder.reporting.terminal import print_table

    rows = []
    for step in steps:
        counts = sorted(step["dropped"].items(), key=lambda pair: (-pair[1], pair[0]))
        rules = [f"{rule} {count:,}" for rule, count in counts]
        if most and len(rules) > most:
            rules[most:] = ["..."]
        rows.append([step["step"], f"{sum(step['dropped'].values()):,}", f"{step['left']:,}", ", ".join(rules)])
    print_table(output, ("step", "dropped", "left", "by rule"), rows, numbers=("dropped", "left"))
