"""`mft data stats`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import COUNT, PATH, PageFile
from mftcoder.processes import import_numpy_without_threads


@click.command("stats", short_help="Count what is in files, a recipe or a config.")
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option(
    "--tokenizer", metavar="MODEL", help="Count tokens of this model (default: that of a config, else words only)."
)
@click.option("--chat-template", metavar="NAME", help="Template of the tokens (default: the tokenizer's own).")
@click.option("--max-length", type=COUNT, help="Show what rows of this length cut.", metavar="N")
@click.option("--near", is_flag=True, help="Find near-duplicates too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--out", type=PageFile(), metavar="PAGE.html", help="Write a page, with .md and .json beside it.")
@click.option("--num-proc", type=COUNT, help="Processes (default: all cores).", metavar="N")
def command(paths: tuple[Path, ...], as_json: bool, out: Path | None, **options: Any) -> None:
    """Count records, words, tokens, lengths, turns, languages, duplicates and what tasks have in common.

    PATHS are files or folders of records, each a task, or one recipe or config.

    \b
    mft data stats data/chat data/tests
    mft data stats data/chat --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --max-length 2048
    mft data stats my.yaml --near --out data.html
    """
    import_numpy_without_threads()
    from mftcoder.app.data.stats import StatsOptions, stats

    files = () if out is None else (out, out.with_suffix(".md"), out.with_suffix(".json"))
    for file in files:
        if any(file.resolve() == path.resolve() for path in paths):
            raise click.UsageError(f"--out {out}: {file} would replace what is counted. Choose another name")
    with shown(stderr=True) as on_progress:
        summary = stats(paths, StatsOptions(**options), on_progress)
    if files:
        _write(summary, *files)
    if as_json:
        import json

        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    _print(summary)
    if out is not None:
        console().print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _write(summary: dict[str, Any], page: Path, markdown: Path, numbers: Path) -> None:
    from mftcoder.jsonl import write_json, write_text
    from mftcoder.reporting.data_page import render_data

    pages = render_data(summary)
    write_text(page, pages.html)
    write_text(markdown, pages.markdown)
    write_json(numbers, summary)


def _print(summary: dict[str, Any]) -> None:
    from mftcoder.reporting.data_page import notes, overlap_note, tables_for_a_terminal, unusable
    from mftcoder.reporting.terminal import print_list, print_table_with_names

    output = console()
    for heading, table in tables_for_a_terminal(summary):
        if heading:
            output.print(f"\n{heading}", highlight=False)
        print_table_with_names(output, table.columns, table.rows, "task", numbers=table.columns[table.names :])
    output.print()
    overlap = [overlap_note(summary)] if len(summary["sets"]) > 1 else []
    for line in [*overlap, *notes(summary)]:
        output.print(line, highlight=False, markup=False, soft_wrap=True)
    first, *others = unusable(summary) or ("",)
    print_list(output, first, others)
