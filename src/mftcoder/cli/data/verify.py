"""`mft data verify`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import shown
from mftcoder.cli.data.curate import run_step
from mftcoder.cli.options import PATH, Finite, Names, paths_to_out
from mftcoder.errors import DataError


@click.command("verify", short_help="Run what can be run of each record, and drop what fails.")
@paths_to_out
@click.option(
    "--checks",
    type=Names(),
    metavar="NAME,...",
    help="What is run (default: all): tests, asserts, doctests, examples, import, compile.",
)
@click.option(
    "--failed", type=click.Choice(["drop", "keep"]), default="drop", help="What happens to a record that fails."
)
@click.option(
    "--not-run",
    type=click.Choice(["drop", "keep"]),
    default="keep",
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
@click.option(
    "--teacher", metavar="URL", help="First let a model write tests and answers that agree: its endpoint's base URL."
)
@click.option("--teacher-model", metavar="NAME", help="The model's name at the endpoint.")
@click.option("--language", help="The language of answers without a fence (default: Python where it begins so).")
@click.option("--timeout", type=Finite(0.001, 3600), default=5.0, help="CPU seconds per record.")
@click.option("--sandbox", type=click.Choice(["auto", "namespaces", "process"]), default="auto", help="Level.")
def command(paths: tuple[Path, ...], out: Path, teacher: str | None, teacher_model: str | None, **options: Any) -> None:
    """Run the records in PATHS in the sandbox; each path is a task.

    An answer is run against its tests, its asserts and doctests, and the examples of its question. Python code must
    import, compiled languages must compile. What cannot be run is counted by reason and kept.

    \b
    mft data verify data/chat --out data/verified
    mft data verify data/chat --out data/proved --not-run drop --checks tests,examples
    mft data verify data/chat --out data/labelled --failed keep --label
    mft data verify data/sampled --out data/verified --preferences data/pairs.jsonl
    mft data verify data/chat --out data/proved --teacher http://localhost:8000/v1 --teacher-model NAME
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    if (teacher is None) != (teacher_model is None):
        raise click.UsageError("give --teacher and --teacher-model together")
    if teacher and teacher_model:
        paths = (_tested(paths, out.with_name(f"{out.name}.teacher"), teacher, teacher_model),)
        given["samples"] = "samples" if given["preferences"] else None
    run_step(paths, out, {"verify": {name: value for name, value in given.items() if value is not None}})


def _tested(paths: tuple[Path, ...], folder: Path, url: str, model: str) -> Path:
    """The records with the teacher's tests: what `mft data synthesize tests --answers 4` makes."""
    from mftcoder.app.data.synthesize import synthesize_options

    endpoint = {"url": url, "model": model}
    section = {"records": list(map(str, paths)), "answers": _ANSWERS}
    raw = {"tests": section, "endpoint": endpoint, "output_dir": str(folder)}
    with shown(stderr=True) as on_progress:
        made = synthesize_options(raw, on_progress=on_progress)
    if "tested" not in made.manifest["tasks"]:
        raise DataError(
            f"{folder}: no record has tests on which answers agree. Its README.md shows what each rule dropped"
        )
    return folder / "tested"


_ANSWERS = 4
"""Further answers that the teacher writes; a test needs more than half of all."""
