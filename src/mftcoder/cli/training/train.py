"""`mft train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import console, hint_with_command, loaded_config, shown
from mftcoder.cli.options import COUNT, LARGEST, PATH

if TYPE_CHECKING:
    from mftcoder.app.training.train import TrainResult
    from mftcoder.config.schema import RunConfig


@click.command("train", short_help="Train, or resume a stopped run.")
@click.argument("config", type=PATH, required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--allow-changes", is_flag=True, help="Resume even if the config or the data have changed.")
@click.option("--nproc", type=COUNT, metavar="N", help="Start N processes on this machine, one per GPU.")
@click.option("--nnodes", default="1", metavar="N|MIN:MAX", help="Number of machines; needs --rdzv.")
@click.option("--rdzv", metavar="HOST:PORT", help="Address where the machines meet, the same on each.")
@click.option("--max-restarts", type=click.IntRange(0, LARGEST), default=0, help="Restarts after a failure.")
@click.option("--train_config", type=PATH, metavar="FILE", help="CONFIG, as published MFTCoder commands write it.")
@click.option(
    "--distributed_type", metavar="ENGINE", help="Key distributed_type of a published config: deepspeed or fsdp."
)
def command(
    config: Path | None,
    overrides: tuple[str, ...],
    allow_changes: bool,
    nproc: int | None,
    train_config: Path | None,
    distributed_type: str | None,
    **cluster: Any,
) -> None:
    """Train. The same command resumes a stopped run.

    \b
    mft train my.yaml
    mft train my.yaml train.learning_rate=1e-4 tasks.tests.weight=2 output_dir=runs/second
    mft train my.yaml --nproc 8 backend.name=fsdp2 --max-restarts 3
    torchrun --nproc-per-node 8 -m mftcoder train my.yaml
    accelerate launch --config_file fsdp.yaml -m mftcoder train --train_config published.json
    accelerate launch --use_deepspeed --zero_stage 2 -m mftcoder train --train_config published.json --distributed_type deepspeed
    """

    if train_config:
        config, overrides = train_config, (*([str(config)] if config else []), *overrides)
    if config is None:
        raise click.UsageError("Missing argument 'CONFIG'.")
    overrides += (f"distributed_type={distributed_type}",) if distributed_type else ()
    run_config = loaded_config(config, overrides)
    if nproc:
        from mftcoder.app.training.launch import launch

        again = ["--allow-changes"] if allow_changes else []
        launch(["train", str(config), *overrides, *again], nproc, **cluster)
    else:
        from mftcoder.app.training.train import train

        with shown() as on_progress, hint_with_command():
            result = train(run_config, allow_changes=allow_changes, on_progress=on_progress)
        print_result(result, run_config)


def print_result(result: "TrainResult", config: "RunConfig") -> None:
    """The losses of each task, and the commands that come next."""
    from rich.table import Table

    ended = f"{result.steps} steps, {result.stopped_because.replace('_', ' ')}"
    table = Table(title=ended)
    for title in ("task", "before", "after", "best", "lowest", "at step"):
        table.add_column(title, justify="left" if title == "task" else "right")
    for row in result.rows():
        losses = [row[when] for when in ("before", "after", "best", "lowest")]
        cells = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        table.add_row(row["task"], *cells, "-" if row["lowest_step"] is None else f"{row['lowest_step']:,.0f}")
    output = console()
    output.print(table if result.validation else ended)
    output.print(f"mft report {config.output_dir}\nmft export {config.output_dir} OUT", highlight=False)
