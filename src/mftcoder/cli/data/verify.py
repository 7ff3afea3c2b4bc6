"""`mft data verify`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import PATH, Finite, Names, paths_to_out


@click.command("verify", short_help="Run what can be run of each record, and drop what fails.")
@paths_to_out
@click.option(
    "--checks",
    type=Names(),
    metavar="NAME,...",
    help="What is run (default: all): tests, asserts, doctests, examples, import, compile.",
)
@click.option(
    "--failed",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    show_default=True,
    help="What happens to a record that fails.",
)
@click.option(
    "--not-run",
    type=click.Choice(["drop", "keep"]),
    default="keep",
    show_default=True,
    help="What happens to a record of which nothing can be run.",
)
@click.option("--label", is_flag=True, help="Write the verdict into the field `verification` of each kept record.")
@click.option("--tests", metavar="FIELD", help="The field with the tests (default: the first of the usual names).")
@click.option(
    "--preferences",
    type=PATH,
    metavar="FILE",
    help="Also write pairs of a passing and a failing answer to the same question (.jsonl).",
)
@click.option("--samples", metavar="FIELD", help="A field with further answers to the question, for --preferences.")
@click.option("--language", help="The language of answers without a fence (default: Python where it begins so).")
@click.option("--timeout", type=Finite(0.001, 3600), default=5.0, show_default=True, help="CPU seconds per record.")
@click.option(
    "--sandbox", type=click.Choice(["auto", "namespaces", "process"]), default="auto", show_default=True, help="Level."
)
def command(paths: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Run the records in PATHS in the sandbox; each path is a task.

    An answer is run against its tests, its asserts and doctests, and the examples of its question. Python code must
    import, compiled languages must compile. What cannot be run is counted by reason and kept.

    \b
    mft data verify data/chat --out data/verified
    mft data verify data/chat --out data/proved --not-run drop --checks tests,examples
    mft data verify data/chat --out data/labelled --failed keep --label
    mft data verify data/sampled --out data/verified --preferences data/pairs.jsonl
    """
    from mftcoder.app.data.curate import curate_paths

    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    with shown(stderr=True):
        curate_paths(paths, out, {"verify": {name: value for name, value in given.items() if value is not None}})
