"""The group `mft data`."""

import click

from mftcoder.cli.data.curate import command as curate
from mftcoder.cli.data.decontaminate import command as decontaminate
from mftcoder.cli.data.dedup import command as dedup
from mftcoder.cli.data.filter import command as filter_records
from mftcoder.cli.data.mine import command as mine
from mftcoder.cli.data.stats import command as stats
from mftcoder.cli.data.synthesize import group as synthesize
from mftcoder.cli.data.verify import command as verify


@click.group("data")
def group() -> None:
    """Make training data.

    \b
    mft data mine my-repository --out data/mined
    mft data curate recipe.yaml
    mft data synthesize oss my-repository --endpoint http://localhost:8000/v1 --model NAME --out data/oss
    """


for _command in (mine, curate, filter_records, dedup, decontaminate, synthesize, verify, stats):
    group.add_command(_command)
