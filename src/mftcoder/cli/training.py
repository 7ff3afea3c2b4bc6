"""Commands from data to a trained run: prepare, inspect, validate, train, compare, convert-config, data mine."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.group import COUNT, LARGEST, SEED, Finite, cli, config_command


@cli.command()
@config_command
def prepare(config: Path, overrides: tuple[str, ...]) -> None:
    """Tokenise the data once, ahead of training; print what is in it.

    \b
    mft prepare my.yaml
    mft prepare my.yaml data.num_proc=4 data.on_error=skip
    mft prepare my.yaml data.chat_template=chatml data.max_length=4096
    """
    from mftcoder.app.data.prepare import prepare as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides))


@cli.command()
@config_command
@click.option("--task", metavar="NAME", help="Only this task; default all.")
@click.option("--count", type=COUNT, default=2, show_default=True, help="Samples of each task.")
def inspect(config: Path, overrides: tuple[str, ...], task: str | None, count: int) -> None:
    """Show samples as the model will see them, token by token, trained tokens coloured.

    \b
    mft inspect my.yaml
    mft inspect my.yaml --task tests --count 5
    mft inspect my.yaml data.train_on=last_assistant | less -R
    """
    from mftcoder.app.data.inspect import inspect as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides), task=task, count=count)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--allow-changes", is_flag=True, help="Go on from a checkpoint although config or data have changed.")
@click.option("--nproc", type=COUNT, metavar="N", help="Start N processes on this machine, one a GPU.")
@click.option("--nnodes", default="1", show_default=True, metavar="N|MIN:MAX", help="Machines; needs --rdzv.")
@click.option("--rdzv", metavar="HOST:PORT", help="Where the machines meet: the same on each.")
@click.option("--max-restarts", type=click.IntRange(0, LARGEST), default=0, show_default=True, help="After a failure.")
@click.option(
    "--train_config", type=click.Path(path_type=Path), metavar="FILE", help="The published way to say CONFIG."
)
@click.option("--distributed_type", metavar="ENGINE", help="The published key distributed_type: deepspeed or fsdp.")
def train(config: Path | None, overrides: tuple[str, ...], allow_changes: bool, **options: Any) -> None:
    """Train; the same command goes on where a run stopped.

    \b
    mft train my.yaml
    mft train my.yaml train.learning_rate=1e-4 tasks.tests.weight=2 output_dir=runs/second
    mft train my.yaml --nproc 8 backend.name=fsdp2 --max-restarts 3
    torchrun --nproc-per-node 8 -m mftcoder train my.yaml
    accelerate launch --config_file fsdp.yaml -m mftcoder train --train_config published.json
    accelerate launch --use_deepspeed --zero_stage 2 -m mftcoder train --train_config published.json --distributed_type deepspeed
    """
    from mftcoder.config.load import load_config

    published, engine, nproc = (options.pop(name) for name in ("train_config", "distributed_type", "nproc"))
    if published:
        config, overrides = published, (*([str(config)] if config else []), *overrides)
    if config is None:
        raise click.UsageError("Missing argument 'CONFIG'.")
    overrides += (f"distributed_type={engine}",) if engine else ()
    run_config = load_config(config, overrides)
    if nproc:
        from mftcoder.app.training.launch import LaunchOptions, launch

        again = ["--allow-changes"] if allow_changes else []
        launch(["train", str(config), *overrides, *again], LaunchOptions(nproc, **options))
    else:
        from mftcoder.app.training.train import train as run

        run(run_config, allow_changes=allow_changes)


@cli.command()
@config_command
@click.option("--gpu", metavar="[Nx]SIZE", help="Plan the memory for this GPU, or N of them; default: this machine.")
def validate(config: Path, overrides: tuple[str, ...], gpu: str | None) -> None:
    """Check model, tokenizer, template and every record; print the plan and the memory it takes.

    \b
    mft validate my.yaml
    mft validate my.yaml train.per_device_train_batch_size=8
    mft validate my.yaml --gpu 24GB
    mft validate my.yaml --gpu 8x80GB backend.name=fsdp2
    """
    from mftcoder.app.training.validate import validate as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides), gpu=gpu)


@cli.command("convert-config")
@config_command
def convert_config(config: Path, overrides: tuple[str, ...]) -> None:
    """Print a published MFTCoder JSON as our YAML.

    \b
    mft convert-config lora_train_config.json > my.yaml
    mft convert-config lora_train_config.json seq_length=1024 > my.yaml
    """
    from mftcoder.app.training.convert_config import convert_config as run

    run(config, overrides)


@cli.group()
def data() -> None:
    """Make training data.

    \b
    mft data mine my-repository --out data/mined
    """


@data.command("mine")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--stdlib", is_flag=True, help="Mine the running Python's standard library (the default without FOLDER).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Gets one folder a task.")
@click.option("--tasks", help="Comma-separated; default all five.", metavar="NAME,...")
@click.option("--max-per-task", type=COUNT, help="Training examples a task, chosen by their hash.")
@click.option(
    "--max-chars", type=click.IntRange(100, LARGEST), default=1400, show_default=True, help="Longest function."
)
@click.option("--valid-share", type=Finite(0, 0.9), default=0.1, show_default=True, help="Share of modules.")
@click.option(
    "--exam", "exam_dir", type=click.Path(path_type=Path), help="Also run functions, and write an exam of them here."
)
@click.option("--exam-share", type=Finite(0.01, 0.9), default=0.2, show_default=True, help="Share of modules.")
@click.option("--seed", type=SEED, default=42, show_default=True, help="Of the split, the choice and the bugs.")
def data_mine(
    folder: Path | None,
    stdlib: bool,
    out: Path,
    tasks: str | None,
    max_per_task: int | None,
    **options: Any,
) -> None:
    """Make examples of five coding tasks from the Python code in FOLDER.

    Tasks: complete_function, write_function, write_docstring, repair_function, write_test. A module's examples are
    all in train.jsonl or all in valid.jsonl. No mined code is run, but with --exam: functions of modules held out
    from both are then run in the sandbox and become an exam, and others make a sixth task, write_asserts.

    \b
    mft data mine --stdlib --out data/mined --max-per-task 1000
    mft data mine src --out data/ours --tasks repair_function,write_test
    mft data mine src --out data/ours --exam data/exam
    mft generate models/my --task exam --data-dir data/exam --mode chat --evaluate
    """
    from mftcoder.app.data.mine import mine_data

    if stdlib and folder:
        raise click.UsageError("give FOLDER or --stdlib, not both")
    chosen = tuple(name.strip() for name in tasks.split(",")) if tasks else None
    mine_data(folder, out, tasks=chosen, max_per_task=max_per_task, **options)


@cli.command("compare")
@config_command
@click.option("--balancers", default="uniform,coba,pace", show_default=True, metavar="NAME[:OPTION=VALUE]...,...")
@click.option("--seeds", default="0", show_default=True, metavar="SEED,...", help="One run of each method a seed.")
@click.option(
    "--alone/--no-alone", default=True, help="Also train every task by itself, as the reference.  [default: on]"
)
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="Runs at a time; 1 times steps best.")
def compare_command(
    config: Path, overrides: tuple[str, ...], balancers: str, seeds: str, alone: bool, jobs: int
) -> None:
    """Train the same data under several balancers and seeds; write one table of how well each keeps the tasks in balance.

    Runs lie below output_dir; the same command goes on where a stopped one was. Comes out: compare.html, .md and .json.

    \b
    mft compare my.yaml --balancers uniform,coba,pace --seeds 0,1,2
    mft compare my.yaml --balancers uniform,coba:update_interval=10,famo:variant=released --no-alone
    mft compare my.yaml train.max_steps=2000 output_dir=runs/longer
    """
    from mftcoder.app.training.compare import compare_balancers

    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise click.UsageError(f"--seeds {seeds}: whole numbers, separated by commas, are expected")
    names = [name.strip() for name in balancers.split(",") if name.strip()]
    if not names:
        raise click.UsageError(f"--balancers {balancers!r}: names of balancers, separated by commas, are expected")
    chosen = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    compare_balancers(config, overrides, list(dict.fromkeys(names)), chosen, alone=alone, jobs=jobs)
