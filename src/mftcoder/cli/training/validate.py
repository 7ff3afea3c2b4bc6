"""`mft validate`."""

from pathlib import Path

import click

from mftcoder.cli.console import loaded_config, shown
from mftcoder.cli.options import config_arguments


@click.command("validate", short_help="Check everything, print the plan and its memory.")
@config_arguments
@click.option(
    "--gpu",
    metavar="[Nx]SIZE",
    help="Plan the memory for a GPU of this size, or for N of them (default: this machine).",
)
def command(config: Path, overrides: tuple[str, ...], gpu: str | None) -> None:
    """Check the model, the tokenizer, the template and every record. Print the plan and the memory it takes.

    \b
    mft validate my.yaml
    mft validate my.yaml train.per_device_train_batch_size=8
    mft validate my.yaml --gpu 24GB
    mft validate my.yaml --gpu 8x80GB backend.name=fsdp2
    """
    from mftcoder.app.training.validate import validate

    with shown() as on_progress:
        validate(loaded_config(config, overrides), gpu=gpu, on_progress=on_progress)
