"""`mft export`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import PATH, checkpoint, dtype


@click.command("export", short_help="Write a run's model as a Hugging Face folder.")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH, required=False)
@checkpoint
@dtype
@click.option(
    "--compare/--no-compare", default=True, help="For a QLoRA run: compare its predictions with the merged model's."
)
@click.option("--as-trained", is_flag=True, help="For a QLoRA run: merge into the base as its 4 or 8 bits held it.")
@click.option("--verify", is_flag=True, help="Check an exported folder against its checksums instead.")
def command(run: Path, out: Path | None, verify: bool, **options: Any) -> None:
    """Write the model of RUN into the new folder OUT: merged weights, tokenizer, chat template, model card, checksums.

    \b
    mft export runs/my models/my
    mft export runs/my models/my-20 --checkpoint step-00000020 --dtype float32
    mft export --verify models/my
    """
    if verify == (out is not None):
        raise click.UsageError("give RUN and OUT, or --verify and one exported folder")
    if out is None:
        from mftcoder.app.results.verify import verify_folder

        verify_folder(run)
        console().print(f"{run}: every file is as it was written", highlight=False, soft_wrap=True)
    else:
        from mftcoder.app.results.export import export

        with shown(stderr=True):
            export(run, out, **options)
