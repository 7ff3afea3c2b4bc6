"""`mft prepare`."""

from pathlib import Path

import click

from mftcoder.cli.options import config_arguments


@click.command("prepare", short_help="Tokenize the data ahead of training.")
@config_arguments
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Tokenize the data once, ahead of training, and print what is in it.

    \b
    mft prepare my.yaml
    mft prepare my.yaml data.num_proc=4 data.on_error=skip
    mft prepare my.yaml data.chat_template=chatml data.max_length=4096
    """
    from mftcoder.app.data.prepare import prepare
    from mftcoder.config.load import load_config

    prepare(load_config(config, overrides))
