"""`mft inspect`."""

from pathlib import Path

import click

from mftcoder.cli.console import loaded_config
from mftcoder.cli.options import COUNT, config_arguments


@click.command("inspect", short_help="Show samples token by token.")
@config_arguments
@click.option("--task", metavar="NAME", help="Show only this task (default: all).")
@click.option("--count", type=COUNT, default=2, help="Samples of each task.")
def command(config: Path, overrides: tuple[str, ...], task: str | None, count: int) -> None:
    """Show samples as the model will see them, token by token, with the trained tokens in colour.

    \b
    mft inspect my.yaml
    mft inspect my.yaml --task tests --count 5
    mft inspect my.yaml data.train_on=last_assistant | less -R
    """
    from mftcoder.app.data.inspect import inspect

    inspect(loaded_config(config, overrides), task=task, count=count)
