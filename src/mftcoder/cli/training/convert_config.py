"""`mft convert-config`."""

from pathlib import Path

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import config_arguments


@click.command("convert-config", short_help="Print a published JSON config as YAML.")
@config_arguments
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Print a published MFTCoder JSON config as YAML for mft.

    \b
    mft convert-config lora_train_config.json > my.yaml
    mft convert-config lora_train_config.json seq_length=1024 > my.yaml
    """
    from mftcoder.app.training.convert_config import convert_config

    with shown(stderr=True):
        text = convert_config(config, overrides)
    click.echo(text, nl=False)
