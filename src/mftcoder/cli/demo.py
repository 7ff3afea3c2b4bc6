"""`mft demo`."""

from pathlib import Path

import click

from mftcoder.cli.options import PATH, Finite


@click.command("demo", short_help="Show the whole journey on a small real model.")
@click.option("--out", type=PATH, default=Path("demo"), help="Output directory.")
@click.option(
    "--minutes",
    type=Finite(min=1),
    default=15,
    help="Time for the whole demo. Training takes fewer than 60 steps if they do not fit.",
)
def command(out: Path, minutes: float) -> None:
    """Show the whole journey on a small real model: data, training, export, scores before and after, report.

    Each stage is a command. The demo prints it, so you can type it yourself. The same command continues a stopped demo.

    \b
    mft demo
    mft demo --out /tmp/demo --minutes 30
    """
    from mftcoder.app.demo import demo

    demo(out, minutes=minutes)
