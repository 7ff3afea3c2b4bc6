"""The command `mft`: options in, one call into app/ out. User errors become lines and exit code 2.

Nothing heavy is imported here: each command imports its verb when it runs, so `mft --help` answers at once.
Exit codes: 0 done, 2 a user's mistake, 130 interrupted, 75 stopped by a scheduler after a clean save, 1 a bug of ours.
Of several processes the first one speaks; another only if something is wrong with it alone.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mftcoder import __version__
from mftcoder.errors import ConfigError, Interrupted, MftError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def main(arguments: list[str] | None = None) -> None:
    """Run `mft` and exit with its code."""
    try:
        cli.main(arguments, prog_name="mft", standalone_mode=False)
    except MftError as error:
        said_by_first = _other_rank() and (error.told or isinstance(error, ConfigError))
        for problem in () if said_by_first else error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Interrupted as stop:
        if not _other_rank():
            click.echo(f"interrupted. {stop.hint}", err=True)
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted. Type the same command again to go on.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _other_rank() -> bool:
    return os.environ.get("RANK", "0") != "0"


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="mft")
def cli() -> None:
    """Fine-tune one code model on many tasks, keep them in balance, prove it.

    \b
    mft validate my.yaml                 check everything, print the plan
    mft train my.yaml                    train; the same command resumes
    mft export runs/my models/my         merge and write a Hugging Face folder
    mft generate models/my --task mini   write completions
    mft evaluate generations_mini_my.json --task mini
    mft report runs/my                   one HTML page with curves and tables
    mft demo                             all of it on a small real model
    """


def config_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments shared by the commands that start from a config."""
    command = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)


@cli.command()
@config_command
def prepare(config: Path, overrides: tuple[str, ...]) -> None:
    """Tokenise the data once, ahead of training; print what is in it.

    \b
    mft prepare my.yaml
    mft prepare my.yaml data.num_proc=4 data.on_error=skip
    mft prepare my.yaml data.chat_template=chatml data.max_length=4096
    """
    from mftcoder.app.prepare import prepare as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides))


@cli.command()
@config_command
@click.option("--task", metavar="NAME", help="Only this task; default all.")
@click.option("--count", type=click.IntRange(min=1), default=2, show_default=True, help="Samples of each task.")
def inspect(config: Path, overrides: tuple[str, ...], task: str | None, count: int) -> None:
    """Show samples as the model will see them, token by token, trained tokens coloured.

    \b
    mft inspect my.yaml
    mft inspect my.yaml --task tests --count 5
    mft inspect my.yaml data.train_on=last_assistant | less -R
    """
    from mftcoder.app.inspect import inspect as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides), task=task, count=count)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--allow-changes", is_flag=True, help="Go on from a checkpoint although config or data have changed.")
@click.option("--nproc", type=click.IntRange(min=1), metavar="N", help="Start N processes on this machine, one a GPU.")
@click.option("--nnodes", default="1", show_default=True, metavar="N|MIN:MAX", help="Machines; needs --rdzv.")
@click.option("--rdzv", metavar="HOST:PORT", help="Where the machines meet: the same on each.")
@click.option("--max-restarts", type=click.IntRange(min=0), default=0, show_default=True, help="After a failure.")
@click.option(
    "--train_config", type=click.Path(path_type=Path), metavar="FILE", help="The published way to say CONFIG."
)
@click.option("--distributed_type", metavar="ENGINE", help="The published key distributed_type: fsdp.")
def train(config: Path | None, overrides: tuple[str, ...], allow_changes: bool, **options: Any) -> None:
    """Train; the same command goes on where a run stopped.

    \b
    mft train my.yaml
    mft train my.yaml train.learning_rate=1e-4 tasks.tests.weight=2 output_dir=runs/second
    mft train my.yaml --nproc 8 backend.name=fsdp2 --max-restarts 3
    torchrun --nproc-per-node 8 -m mftcoder train my.yaml
    accelerate launch --config_file fsdp.yaml -m mftcoder train --train_config published.json
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
        from mftcoder.app.launch import LaunchOptions, launch

        again = ["--allow-changes"] if allow_changes else []
        launch(["train", str(config), *overrides, *again], LaunchOptions(nproc, **options))
    else:
        from mftcoder.app.train import train as run

        run(run_config, allow_changes=allow_changes)


@cli.command()
@config_command
def validate(config: Path, overrides: tuple[str, ...]) -> None:
    """Check model, tokenizer, template and every record; print the plan and the memory it takes.

    \b
    mft validate my.yaml
    mft validate my.yaml train.per_device_train_batch_size=8
    """
    from mftcoder.app.validate import validate as run
    from mftcoder.config.load import load_config

    run(load_config(config, overrides))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, and for each lack what it means and how to mend it.

    \b
    mft doctor
    mft doctor --json | python -m json.tool
    """
    from mftcoder.app.doctor import doctor as run

    run(as_json=as_json)


@cli.command("convert-config")
@config_command
def convert_config(config: Path, overrides: tuple[str, ...]) -> None:
    """Print a published MFTCoder JSON as our YAML.

    \b
    mft convert-config lora_train_config.json > my.yaml
    mft convert-config lora_train_config.json seq_length=1024 > my.yaml
    """
    from mftcoder.app.convert_config import convert_config as run

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
@click.option("--max-per-task", type=click.IntRange(min=1), help="Training examples a task, chosen by their hash.")
@click.option("--valid-share", type=click.FloatRange(0, 0.9), default=0.1, show_default=True, help="Share of modules.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of the split, the choice and the bugs.")
def data_mine(
    folder: Path | None,
    stdlib: bool,
    out: Path,
    tasks: str | None,
    max_per_task: int | None,
    valid_share: float,
    seed: int,
) -> None:
    """Make examples of five coding tasks from the Python code in FOLDER.

    Tasks: complete_function, write_function, write_docstring, repair_function, write_test. A module's examples are
    all in train.jsonl or all in valid.jsonl. No mined code is run.

    \b
    mft data mine --stdlib --out data/mined --max-per-task 1000
    mft data mine src --out data/ours --tasks repair_function,write_test
    """
    from mftcoder.app.mine import mine_data

    if stdlib and folder:
        raise click.UsageError("give FOLDER or --stdlib, not both")
    chosen = tuple(name.strip() for name in tasks.split(",")) if tasks else None
    mine_data(folder, out, tasks=chosen, max_per_task=max_per_task, valid_share=valid_share, seed=seed)


@cli.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--checkpoint", default="best", show_default=True, help="best, latest or a folder's name, step-00000020.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the weights; default the run's.")
@click.option(
    "--compare/--no-compare", default=True, help="Of a QLoRA run: compare its predictions with the merged ones."
)
@click.option("--verify", is_flag=True, help="Check an exported folder against its checksums instead.")
def export_command(
    run: Path, out: Path | None, checkpoint: str, dtype: str | None, compare: bool, verify: bool
) -> None:
    """Write the model of RUN into the new folder OUT: merged weights, tokenizer, chat template, model card, checksums.

    \b
    mft export runs/my models/my
    mft export runs/my models/my-20 --checkpoint step-00000020 --dtype float32
    mft export --verify models/my
    """
    if verify == (out is not None):
        raise click.UsageError("give RUN and OUT, or --verify and one exported folder")
    if out is None:
        from mftcoder.app.verify import verify_folder

        verify_folder(run)
    else:
        from mftcoder.app.export import export

        export(run, out, checkpoint=checkpoint, dtype=dtype, compare=compare)


@cli.command("generate")
@click.argument("model")
@click.option("--task", "tasks", required=True, help="Benchmarks or groups, comma-separated.", metavar="NAME,...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the benchmarks' data; default the Hub.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Gets the files; default here.")
@click.option("--name", help="Of the model, in file names; default from MODEL.")
@click.option(
    "--mode",
    type=click.Choice(["completion", "instruct", "chat"]),
    default="completion",
    show_default=True,
    help="Go on with the code; the same behind an instruction; or ask in a chat.",
)
@click.option("--prefix", default="", help="Stands before each prompt.")
@click.option("--suffix", default="", help="Stands behind each prompt.")
@click.option("--system", default="", help="System message of mode chat.")
@click.option("--template", help="Chat template of mode chat; default the run's, else the tokenizer's own.")
@click.option("--n-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Answers a problem.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Samples at the same time."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of sampling; a sample's text depends on no other."
)
@click.option("--limit", type=click.IntRange(min=1), help="The first N problems of each task only.")
@click.option("--checkpoint", default="best", show_default=True, help="Of a run folder: best, latest or a name.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the weights; default the model's own.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@click.option("--as-trained", is_flag=True, help="Of a QLoRA run: over the base in its 4 or 8 bits, not merged.")
def generate_command(model: str, tasks: str, **options: Any) -> None:
    """Write MODEL's answers to benchmarks: generations_TASK_MODEL.json, ready for `mft evaluate`.

    MODEL is a model folder, a Hub id, a .gguf file or a run folder. The same command goes on where a stopped one was.

    \b
    mft generate models/my --task mini
    mft generate runs/my --task humaneval,mbpp --data-dir data --mode chat --out scores
    mft generate models/my --task humaneval --n-samples 20 --temperature 0.8 --top-p 0.95 --batch-size 64
    """
    from mftcoder.app.generate import GenerateOptions, generate

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if options["n_samples"] > 1 and options["temperature"] == 0:
        raise click.UsageError("--n-samples above 1 needs a --temperature above 0: greedy answers are all the same")
    generate(model, GenerateOptions(tasks=names, **options))


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE...")
@click.option("--task", help="Benchmark; default from a file's name, generations_TASK_MODEL.json.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the benchmarks' data; default the Hub.")
@click.option("--out", type=click.Path(path_type=Path), help="Gets metrics and results; default beside each file.")
@click.option("-k", "ks", default="1", show_default=True, help="Comma-separated: pass@k for each.", metavar="N,...")
@click.option("--workers", type=click.IntRange(min=1), help="Programs at the same time; default one a core.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds a program; default the benchmark's."
)
@click.option("--memory-mb", type=click.IntRange(min=64), default=1024, show_default=True, help="Megabytes a program.")
@click.option("--sandbox", default="auto", show_default=True, help="auto, namespaces or process.")
@click.option("--limit", type=click.IntRange(min=1), help="The first N problems only.")
def evaluate(
    files: tuple[Path, ...],
    task: str | None,
    data_dir: Path | None,
    out: Path | None,
    ks: str,
    workers: int | None,
    timeout: float | None,
    memory_mb: int,
    sandbox: str,
    limit: int | None,
) -> None:
    """Run the answers in FILE... against their tests, isolated, and write the scores.

    A FILE is a JSON list (a problem) of lists (a sample) of texts, or JSON Lines with task_id and generation or
    completion. Answers may be bare completions, whole functions, repeat the prompt, or stand in a fenced block.
    The same command goes on where a stopped one was.

    \b
    mft evaluate generations_humaneval_my.json --data-dir data
    mft evaluate samples.jsonl --task humaneval --data-dir data --out scores -k 1,10
    mft evaluate generations_mini_my.json --task mini --timeout 5 --workers 2
    """
    from mftcoder.app.evaluate import EvaluateOptions
    from mftcoder.app.evaluate import evaluate as run

    if not all(part.strip().isdigit() and int(part) > 0 for part in ks.split(",")):
        raise click.UsageError(f"-k {ks}: whole numbers from 1, separated by commas, are expected")
    k = tuple(sorted({int(part) for part in ks.split(",")}))
    run(files, EvaluateOptions(task, data_dir, out, k, workers, timeout, memory_mb, sandbox, limit))


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="The page; default RUN/report.html of the first run.")
@click.option("--metrics", multiple=True, type=click.Path(path_type=Path), help="A metrics file of mft evaluate.")
def report(runs: tuple[Path, ...], out: Path | None, metrics: tuple[Path, ...]) -> None:
    """Write one HTML page (and Markdown) about training runs, side by side.

    Scores come from the metrics files given, the first of a benchmark being the "before"; else from the run folders.

    \b
    mft report runs/my
    mft report runs/uniform runs/coba --out compared.html
    mft report runs/my --metrics metrics_mini_base.json --metrics metrics_mini_my.json
    """
    from mftcoder.app.report import report as run

    run(runs, out=out, metrics=metrics)


@cli.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Gets everything."
)
@click.option(
    "--minutes", type=click.FloatRange(min=1), default=9, show_default=True, help="Decides how many steps are trained."
)
def demo_command(out: Path, minutes: float) -> None:
    """Show the whole journey on a real small model: data, training, export, scores before and after, report.

    Each stage is a command that is printed, so that it can be typed by hand. A stopped demo goes on where it was.

    \b
    mft demo
    mft demo --out /tmp/demo --minutes 20
    """
    from mftcoder.app.demo import demo

    demo(out, minutes=minutes)
