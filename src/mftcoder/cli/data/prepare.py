"""`mft prepare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mftcoder.cli.console import console, loaded_config, shown
from mftcoder.cli.options import PATH, config_arguments

if TYPE_CHECKING:
    from rich.table import Table

    from mftcoder.app.data.prepare import PreparedData, WrittenTokens

_COLUMNS = {
    "samples": "samples",
    "validation": "validation_samples",
    "tokens": "tokens",
    "trained\ntokens": "trained_tokens",
    "truncated": "truncated",
    "dropped": "dropped",
}
"""Always shown: title -> column of PreparedData.rows()."""
_RARE_COLUMNS = {
    "split": "split",
    "untrained": "untrained",
    "skipped": "skipped",
    "problems": "problems",
    "duplicates": "duplicates",
    "also in\nvalidation": "overlap",
    "beyond\nmax_samples": "unused",
    "FIM": "fim",
}
"""Shown if any task has one."""


@click.command("prepare", short_help="Tokenize the data ahead of training.")
@config_arguments
@click.option(
    "--format",
    "form",
    type=click.Choice(["store", "megatron"]),
    default="store",
    help="store: for mft train. megatron: also writes tasks of kind pretrain as .bin and .idx files.",
)
@click.option("--out", type=PATH, help="Output directory of --format megatron.")
def command(config: Path, overrides: tuple[str, ...], form: str, out: Path | None) -> None:
    """Tokenize the data once, ahead of training, and print what is in it.

    \b
    mft prepare my.yaml
    mft prepare my.yaml data.num_proc=4 data.on_error=skip
    mft prepare my.yaml data.chat_template=chatml data.max_length=4096
    mft prepare pretrain.yaml --format megatron --out tokens
    """
    from mftcoder.app.data.prepare import check_megatron, prepare, write_megatron

    if (form == "megatron") != (out is not None):
        raise click.UsageError("--format megatron and --out belong together: give both, or neither.")
    loaded = loaded_config(config, overrides)
    if out is not None:
        check_megatron(loaded)
    with shown(stderr=True) as on_progress:
        prepared = prepare(loaded, on_progress=on_progress)
    print_prepared(prepared)
    if out is not None:
        print_written(write_megatron(prepared, out))


def print_prepared(prepared: "PreparedData") -> None:
    """The table, the records that were skipped, the folder."""
    from rich.console import Console

    output, table, store = console(), statistics_table(prepared), prepared.store
    # A narrow terminal wraps the lines; numbers cut short would be worse.
    output.width = max(output.width, Console(width=1000).measure(table).maximum)
    output.print(table)
    shown_problems = store.skipped[: prepared.config.data.max_errors]
    lines = [f"skipped {problem}" for problem in shown_problems]
    if (hidden := sum(counts.problems for counts in store.statistics) - len(shown_problems)) > 0:
        lines.append(f"... and {hidden:,} more")
    for line in (*lines, f"store {store.folder}"):
        output.print(line, highlight=False, markup=False, soft_wrap=True)


def print_written(written: "Sequence[WrittenTokens]") -> None:
    output = console()
    for one in written:
        line = f"{one.index.with_suffix('.bin')} and .idx: {one.tokens:,} tokens in {one.documents:,} documents"
        output.print(line, highlight=False, markup=False, soft_wrap=True)


def statistics_table(prepared: "PreparedData") -> "Table":
    """One line a task and one for all: samples, validation, tokens, what was left out and why, how full the rows are."""
    from rich import box
    from rich.table import Table

    rows = prepared.rows()
    columns = _COLUMNS | {title: name for title, name in _RARE_COLUMNS.items() if any(row[name] for row in rows)}
    title = f"{len(rows)} tasks, rows of {prepared.config.data.max_length:,} positions"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for heading in (*columns, "rows", "row\nfill"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        fill = "by batch" if row["row_fill"] is None else f"{100 * row['row_fill']:.1f}%"
        table.add_row(row["task"], *(f"{row[name]:,}" for name in columns.values()), f"{row['rows']:,}", fill)
    if len(rows) > 1:
        totals = (f"{sum(row[name] for row in rows):,}" for name in columns.values())
        table.add_section()
        table.add_row("all", *totals, "", "")
    return table
