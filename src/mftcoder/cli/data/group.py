"""The group `mft data`."""

import click

from mftcoder.cli.data.curate import command as curate
from mftcoder.cli.data.mine import command as mine


@click.group("data")
def group() -> None:
    """Make training data.

    \b
    mft data mine my-repository --out data/mined
    mft data curate recipe.yaml
    """


for _command in (mine, curate):
    group.add_command(_command)
