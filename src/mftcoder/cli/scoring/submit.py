"""`mft submit`."""

from pathlib import Path

import click

from mftcoder.cli.options import PATH


@click.command("submit", short_help="Check and pack a leaderboard submission.")
@click.argument("folder", type=PATH, required=False)
@click.option("--check", "archive", type=PATH, help="Check this zip instead of making one.", metavar="FILE.zip")
@click.option("--out", type=PATH, help="Output directory of the zip (default: the parent of FOLDER).")
@click.option(
    "--metrics", type=PATH, help="Directory with the metrics files (default: metrics_MODEL in the parent of FOLDER)."
)
def command(folder: Path | None, archive: Path | None, out: Path | None, metrics: Path | None) -> None:
    """Check FOLDER (generations_MODEL with its 13 files) and pack it for the leaderboard, or say why it would be refused.

    \b
    mft submit generations_my-model
    mft submit --check generations_my-model.zip
    """
    from mftcoder.app.scoring.submit import check, submit

    if (folder is None) == (archive is None):
        raise click.UsageError("give a FOLDER, or --check FILE.zip")
    if archive:
        check(archive)
    elif folder:
        submit(folder, out, metrics)
