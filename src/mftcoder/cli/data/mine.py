"""`mft data mine`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import COUNT, LARGEST, PATH, SEED, Finite, Names

if TYPE_CHECKING:
    from rich.table import Table

    from mftcoder.app.data.mine import MinedData


@click.command("mine", short_help="Make examples of coding tasks from your code.")
@click.argument("folder", type=PATH, required=False)
@click.option("--stdlib", is_flag=True, help="Mine Python's standard library (the default without FOLDER).")
@click.option("--out", type=PATH, required=True, help="Output directory: one folder per task.")
@click.option("--tasks", type=Names(), metavar="NAME,...", help="Tasks to make (default: the first five).")
@click.option("--languages", type=Names(), metavar="NAME,...", help="Languages to read (default: all six).")
@click.option(
    "--licenses", type=Names(), metavar="NAME,...", help="Licences of files to read, as SPDX names (default: all)."
)
@click.option("--context", is_flag=True, help="Show imports and signatures that a function uses in the question.")
@click.option("--max-per-task", type=COUNT, help="Most training examples per task, chosen by their hash.")
@click.option("--max-chars", type=click.IntRange(100, LARGEST), default=1400, help="Longest function.")
@click.option("--valid-share", type=Finite(0, 0.9), default=0.1, help="Fraction of modules for validation.")
@click.option("--exam", "exam_dir", type=PATH, help="Also run functions, and write an exam of them to this directory.")
@click.option("--exam-share", type=Finite(0.01, 0.9), default=0.2, help="Fraction of modules for the exam.")
@click.option("--history", type=PATH, metavar="REPO", help="Also read the fixes in the log of this git repository.")
@click.option("--fix-pattern", metavar="REGEX", help="Messages of the commits that fix something (default: built in).")
@click.option("--seed", type=SEED, default=42, help="Seed of the split, the choice and the bugs.")
def command(folder: Path | None, stdlib: bool, out: Path, tasks: tuple[str, ...] | None, **options: Any) -> None:
    """Make examples of coding tasks from the code in FOLDER.

    Tasks: complete_function, write_function, write_docstring, repair_function, write_test; and, if --tasks names
    them, complete_line, complete_block, fill_middle, translate. Languages: python, java,
    javascript, go, rust, cpp; all but Python need the extra "curate". All examples of a module go to train.jsonl, or
    all go to valid.jsonl. No mined code is run without --exam. With --exam, some modules are held out from both
    files: their Python functions are run in the sandbox and become an exam. Functions of the other modules are run
    too and make a sixth task, write_asserts.

    \b
    mft data mine --stdlib --out data/mined --max-per-task 1000
    mft data mine src --out data/ours --tasks repair_function,write_test
    mft data mine ~/src/ours --out data/ours --languages go,rust
    mft data mine src --out data/ours --tasks fill_middle,complete_line,complete_block --context
    mft data mine sdk --out data/ours --tasks translate --languages go,java
    mft data mine ~/src/ours --out data/ours --licenses MIT,BSD-3-Clause,Apache-2.0
    mft data mine --history ~/src/ours --out data/fixes
    mft data mine src --out data/ours --exam data/exam
    mft generate models/my --task exam --data-dir data/exam --mode chat --evaluate
    """
    from mftcoder.app.data.mine import mine_data

    if stdlib and (folder or options["history"]):
        raise click.UsageError("give FOLDER or --history, or else --stdlib, not both")
    if options["fix_pattern"] and not options["history"]:
        raise click.UsageError("--fix-pattern is about --history, which is not given")
    with shown(stderr=True) as on_progress:
        found = mine_data(folder, out, tasks=tasks, on_progress=on_progress, **options)
    print_mined(found, out, options["exam_dir"])


def print_mined(data: "MinedData", out: Path, exam_dir: Path | None) -> None:
    """The examples of each task, the exam, and what was skipped for which reason."""
    output, mined = console(stderr=True), data.mined
    shares = ", ".join(f"{name}: {count:,}" for name, count in mined.languages.most_common())
    found = f"{mined.functions:,} functions of {mined.modules:,} modules ({shares})" if shares else "fixes of the log"
    output.print(f"{found} -> {out}", soft_wrap=True)
    if mined.licenses:
        licences = ", ".join(f"{name}: {count:,}" for name, count in mined.licenses.most_common())
        output.print(f"licences: {licences}", soft_wrap=True, highlight=False)
    output.print(_examples_table(data))
    if exam_dir:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in data.exam_kinds.items())
        output.print(f"exam of modules held out -> {exam_dir}: {counts}", soft_wrap=True, highlight=False)
    output.print("passed over:", _skips_table(data))


def _examples_table(found: "MinedData") -> "Table":
    from rich.table import Column, Table

    table = Table("task", Column("train", justify="right"), Column("valid", justify="right"))
    for name, task in found.mined.tasks.items():
        table.add_row(name, f"{len(task.train):,}", f"{len(task.valid):,}")
    return table


def _skips_table(found: "MinedData") -> "Table":
    from rich.table import Column, Table

    table = Table(Column("count", justify="right"), "reason")
    for reason, count in found.mined.skips.most_common():
        table.add_row(f"{count:,}", reason)
    return table
