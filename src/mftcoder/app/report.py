"""`mft report`: run folders and metrics files in, report.html and report.md out. Trains nothing, scores nothing."""

from collections.abc import Sequence
from pathlib import Path

import click

from mftcoder.errors import DataError
from mftcoder.jsonl import write_text
from mftcoder.reporting.page import render
from mftcoder.reporting.run_folder import read_runs
from mftcoder.reporting.scores import find_metrics, read_scores


def report(paths: Sequence[Path], *, out: Path | None = None, metrics: Sequence[Path] = ()) -> Path:
    """Write the page of the runs among `paths`; returns its path. JSON files among them count as metrics files.

    Without any metrics file, those in the run folders are taken. `out` is the HTML file; the Markdown lies beside it.
    """
    folders = [path for path in paths if path.suffix != ".json"]
    given = [*metrics, *(path for path in paths if path.suffix == ".json")]
    if not folders:
        raise DataError("no run folder given: mft report RUN... [--metrics FILE]")
    runs = read_runs(folders)
    scores = read_scores(given or [path for folder in folders for path in find_metrics(folder)])
    pages = render(runs, scores)
    target = out or folders[0] / "report.html"
    write_text(target, pages.html)
    write_text(target.with_suffix(".md"), pages.markdown)
    click.echo(f"{target}\n{target.with_suffix('.md')}")
    return target
