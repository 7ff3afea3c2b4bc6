"""`mft report`."""

from pathlib import Path

import click

from mftcoder.cli.options import PATH, PageFile, data_dir


@click.command("report", short_help="Write one HTML page about runs.")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "--out", type=PageFile(), metavar="PAGE.html", help="The HTML file (default: report.html in the first RUN)."
)
@click.option(
    "--metrics", multiple=True, type=PATH, help="A metrics file of `mft evaluate`; may be given several times."
)
@data_dir
def command(runs: tuple[Path, ...], out: Path | None, metrics: tuple[Path, ...], data_dir: Path | None) -> None:
    """Write one HTML page (and Markdown) about training runs, side by side. The folder of an `mft improve` stands for its runs and rounds.

    Scores come from the metrics files given, otherwise from the run folders. The first file of a benchmark is the
    "before". Two models on the same problems are compared problem by problem: what was gained and lost, and whether
    that is more than chance. Where their generations lie beside the metrics, three problems of each benchmark are shown
    with both answers; --data-dir lets the page find their prompts.

    \b
    mft report runs/my
    mft report runs/uniform runs/coba --out compared.html
    mft report improved
    mft report runs/my --metrics metrics_mini_base.json --metrics metrics_mini_my.json
    """
    from mftcoder.app.results.report import report

    page = report(runs, out=out, metrics=metrics, data_dir=data_dir)
    click.echo(f"{page}\n{page.with_suffix('.md')}")
