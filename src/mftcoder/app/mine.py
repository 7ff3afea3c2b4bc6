"""`mft data mine`: a folder of Python code in, one folder of chat_rounds JSONL a task out, plus `mining.json` with every count.

`OUT/<task>/train.jsonl` and `valid.jsonl` are written atomically; the same folder, seed and options give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mftcoder.curation.mining import Mined, MiningOptions, mine
from mftcoder.curation.mining_sources import standard_library
from mftcoder.curation.mining_tasks import TASKS
from mftcoder.errors import DataError
from mftcoder.jsonl import write_json, write_jsonl
from mftcoder.registry import did_you_mean


def mine_data(
    folder: Path | None,
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    max_per_task: int | None = None,
    valid_share: float = 0.1,
    seed: int = 42,
) -> None:
    """Mine `folder` (None: the running interpreter's standard library) into `out`, and print what came of it."""
    options = MiningOptions(tuple(tasks or TASKS), max_per_task, valid_share, seed)
    unknown = [name for name in options.tasks if name not in TASKS]
    problems = [f"--tasks: unknown task '{name}'.{did_you_mean(name, TASKS)}" for name in unknown]
    source = folder or standard_library()
    if not source.is_dir():
        problems.append(f"{source}: no such folder")
    if problems:
        raise DataError(*problems)
    console = Console(stderr=True)
    mined = _with_progress(source, options, console)
    if not any(task.train for task in mined.tasks.values()):
        raise DataError(f"{source}: no function in it makes an example: {_most_common(mined)}")
    _write(mined, source, out, options)
    console.print(f"{mined.functions:,} functions of {mined.modules:,} modules -> {out}", soft_wrap=True)
    console.print(_examples_table(mined))
    console.print("passed over:", _skips_table(mined))


def _with_progress(source: Path, options: MiningOptions, console: Console) -> Mined:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"reading {source}", total=None)
        return mine(source, options, lambda done, total: progress.update(bar, completed=done, total=total))


def _write(mined: Mined, source: Path, out: Path, options: MiningOptions) -> None:
    for name, task in mined.tasks.items():
        for file, records in (("train.jsonl", task.train), ("valid.jsonl", task.valid)):
            path = out / name / file
            if records:
                write_jsonl(path, records)
            else:  # an empty file would be an error where it is read
                path.unlink(missing_ok=True)
    write_json(
        out / "mining.json",
        {
            "source": str(source),
            "options": {**vars(options), "tasks": list(options.tasks)},
            "modules": mined.modules,
            "functions": mined.functions,
            "examples": {name: {"train": len(t.train), "valid": len(t.valid)} for name, t in mined.tasks.items()},
            "skipped": dict(mined.skips.most_common()),
        },
    )


def _examples_table(mined: Mined) -> Table:
    table = Table()
    table.add_column("task")
    table.add_column("train", justify="right")
    table.add_column("valid", justify="right")
    for name, task in mined.tasks.items():
        table.add_row(name, f"{len(task.train):,}", f"{len(task.valid):,}")
    return table


def _skips_table(mined: Mined) -> Table:
    table = Table()
    table.add_column("count", justify="right")
    table.add_column("reason")
    for reason, count in mined.skips.most_common():
        table.add_row(f"{count:,}", reason)
    return table


def _most_common(mined: Mined) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in mined.skips.most_common(3)) or "it has none"
