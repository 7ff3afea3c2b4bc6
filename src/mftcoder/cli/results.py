"""Commands about what is there: export, report, doctor, demo."""

from pathlib import Path

import click

from mftcoder.cli.group import Finite, cli


@cli.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--checkpoint", default="best", show_default=True, help="best, latest or a folder's name, step-00000020.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the weights; default the run's.")
@click.option(
    "--compare/--no-compare", default=True, help="Of a QLoRA run: compare its predictions with the merged ones."
)
@click.option("--as-trained", is_flag=True, help="Of a QLoRA run: merge into the base as its 4 or 8 bits held it.")
@click.option("--verify", is_flag=True, help="Check an exported folder against its checksums instead.")
def export_command(
    run: Path, out: Path | None, checkpoint: str, dtype: str | None, compare: bool, as_trained: bool, verify: bool
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
        from mftcoder.app.results.verify import verify_folder

        verify_folder(run)
    else:
        from mftcoder.app.results.export import export

        export(run, out, checkpoint=checkpoint, dtype=dtype, compare=compare, as_trained=as_trained)


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="The page; default RUN/report.html of the first run.")
@click.option("--metrics", multiple=True, type=click.Path(path_type=Path), help="A metrics file of mft evaluate.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="The benchmarks' data; lets the page show answers.")
def report(runs: tuple[Path, ...], out: Path | None, metrics: tuple[Path, ...], data_dir: Path | None) -> None:
    """Write one HTML page (and Markdown) about training runs, side by side.

    Scores come from the metrics files given, the first of a benchmark being the "before"; else from the run folders.
    Two models on the same problems are compared problem by problem: what was gained and lost, and whether that is
    more than chance. Where their generations lie beside the metrics, three problems of each are shown with both answers.

    \b
    mft report runs/my
    mft report runs/uniform runs/coba --out compared.html
    mft report runs/my --metrics metrics_mini_base.json --metrics metrics_mini_my.json
    """
    from mftcoder.app.results.report import report as run

    run(runs, out=out, metrics=metrics, data_dir=data_dir)


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


@cli.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Gets everything."
)
@click.option(
    "--minutes",
    type=Finite(min=1),
    default=15,
    show_default=True,
    help="Time for all of it: fewer than 60 steps are trained if they do not fit.",
)
def demo_command(out: Path, minutes: float) -> None:
    """Show the whole journey on a real small model: data, training, export, scores before and after, report.

    Each stage is a command that is printed, so that it can be typed by hand. A stopped demo goes on where it was.

    \b
    mft demo
    mft demo --out /tmp/demo --minutes 30
    """
    from mftcoder.app.demo import demo

    demo(out, minutes=minutes)
