"""Commands from a model to its scores: generate, evaluate, benchmarks, submit."""

from pathlib import Path
from typing import Any, Literal

import click

from mftcoder.cli.group import COUNT, LARGEST, SEED, Finite, cli

DEFAULT = click.core.ParameterSource.DEFAULT


@cli.command("generate")
@click.argument("model")
@click.option("--task", "tasks", default="", help="Benchmarks or groups, comma-separated.", metavar="NAME,...")
@click.option("--preset", help="Tasks, prompts and settings as published: qwen-competition. Prints what it stands for.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the benchmarks' data; default the Hub.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output directory (default: the current one; with --preset generations_NAME in it).",
)
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
@click.option("--system", default="", help="System message of mode chat or of a preset.")
@click.option("--template", help="Chat template of mode chat; default the run's, else the tokenizer's own.")
@click.option("--n-samples", type=COUNT, default=1, show_default=True, help="Answers a problem.")
@click.option("--temperature", type=Finite(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=Finite(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--max-new-tokens", type=COUNT, default=512, show_default=True)
@click.option("--max-length", type=COUNT, help="Most tokens of prompt and answer together.")
@click.option("--end-token", help="A token that ends an answer, beside the model's own EOS tokens.", metavar="TOKEN")
@click.option("--batch-size", type=COUNT, help="Samples at the same time; default 16, vllm 256.")
@click.option("--engine", default="auto", show_default=True, help="transformers, vllm, or auto: vllm if it is there.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of sampling; a sample's text depends on no other."
)
@click.option("--limit", type=COUNT, help="The first N problems of each task only.")
@click.option("--checkpoint", default="best", show_default=True, help="Of a run folder: best, latest or a name.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the weights; default the model's own.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@click.option("--as-trained", is_flag=True, help="Of a QLoRA run: over the base in its 4 or 8 bits, not merged.")
@click.option("--evaluate", "then_evaluate", is_flag=True, help="Run the answers at once, as `mft evaluate` does.")
@click.pass_context
def generate_command(context: click.Context, model: str, tasks: str, then_evaluate: bool, **options: Any) -> None:
    """Write MODEL's answers to benchmarks: generations_TASK_MODEL.json, ready for `mft evaluate`.

    MODEL is a model folder, a Hub id, a .gguf file or a run folder. The same command goes on where a stopped one was.

    \b
    mft generate models/my --task mini
    mft generate runs/my --task humaneval,mbpp --data-dir data --mode chat --out scores
    mft generate models/my --task humaneval --n-samples 20 --temperature 0.8 --top-p 0.95 --batch-size 64
    mft generate models/my --preset qwen-competition --data-dir data --evaluate
    torchrun --nproc-per-node 8 -m mftcoder generate models/my --task mbpp
    """
    from mftcoder.app.scoring.generate import GenerateOptions, generate, preset_options

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    preset = options.pop("preset")
    if not names and preset is None:
        raise click.UsageError("give --task NAME,... or --preset NAME")
    if options["n_samples"] > 1 and options["temperature"] == 0:
        raise click.UsageError("--n-samples above 1 needs a --temperature above 0: greedy answers are all the same")
    if options["top_p"] < 1 and options["temperature"] == 0:
        raise click.UsageError("--top-p needs a --temperature above 0: greedy answers do not follow it")
    if preset:
        typed = {key: value for key, value in options.items() if context.get_parameter_source(key) is not DEFAULT}
        chosen = preset_options(preset, {**typed, "tasks": names})
    else:
        chosen = GenerateOptions(tasks=names, **options)
    files = generate(model, chosen)
    if then_evaluate and files:
        from mftcoder.app.scoring.evaluate import EvaluateOptions, evaluate

        evaluate(files, EvaluateOptions(data_dir=options["data_dir"], limit=options["limit"]))


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE...")
@click.option("--task", help="Benchmark; default from a file's name, generations_TASK_MODEL.json.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the benchmarks' data; default the Hub.")
@click.option("--out", type=click.Path(path_type=Path), help="Gets metrics and results; default beside each file.")
@click.option("-k", "ks", default="1", show_default=True, help="Comma-separated: pass@k for each.", metavar="N,...")
@click.option("--workers", type=COUNT, help="Programs at the same time; default one a core.")
@click.option("--timeout", type=Finite(min=0, min_open=True), help="Seconds a program; default the benchmark's.")
@click.option(
    "--memory-mb", type=click.IntRange(64, LARGEST), default=1024, show_default=True, help="Megabytes a program."
)
@click.option("--sandbox", default="auto", show_default=True, help="container, namespaces, process, or auto.")
@click.option("--limit", type=COUNT, help="The first N problems only.")
@click.option(
    "--imports",
    type=click.Choice(["none", "reference"]),
    help="Imports before a Python answer: none, or the reference harness's. HumanEval, MBPP; default none.",
)
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
    imports: Literal["none", "reference"] | None,
) -> None:
    """Run the answers in FILE... against their tests, isolated, and write the scores.

    A FILE is a JSON list (a problem) of lists (a sample) of texts, or JSON Lines with task_id and generation or
    completion. Answers may be bare completions, whole functions, repeat the prompt, or stand in a fenced block.
    The same command goes on where a stopped one was.

    \b
    mft evaluate generations_humaneval_my.json --data-dir data
    mft evaluate samples.jsonl --task humaneval --data-dir data --out scores -k 1,10
    mft evaluate generations_mini_my.json --task mini --timeout 5 --workers 2
    mft evaluate generations_humaneval_my.json --data-dir data --imports reference
    """
    from mftcoder.app.scoring.evaluate import EvaluateOptions
    from mftcoder.app.scoring.evaluate import evaluate as run

    if not all(part.strip().isdigit() and int(part) > 0 for part in ks.split(",")):
        raise click.UsageError(f"-k {ks}: whole numbers from 1, separated by commas, are expected")
    k = tuple(sorted({int(part) for part in ks.split(",")}))
    run(files, EvaluateOptions(task, data_dir, out, k, workers, timeout, memory_mb, sandbox, limit, imports))


@cli.command()
@click.argument("pattern", required=False)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the benchmarks' data; default the Hub.")
def benchmarks(pattern: str | None, data_dir: Path | None) -> None:
    """List the benchmarks whose name holds PATTERN: size, language, licence, data, toolchain.

    \b
    mft benchmarks
    mft benchmarks rust --data-dir data
    """
    from mftcoder.app.scoring.benchmarks import list_benchmarks

    list_benchmarks(data_dir, pattern)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--check", "archive", type=click.Path(path_type=Path), help="Check this zip instead.", metavar="FILE.zip")
@click.option("--out", type=click.Path(path_type=Path), help="Gets the zip; default the folder's parent.")
@click.option("--metrics", type=click.Path(path_type=Path), help="Folder of metrics; default metrics_MODEL beside.")
def submit(folder: Path | None, archive: Path | None, out: Path | None, metrics: Path | None) -> None:
    """Check FOLDER (generations_MODEL with its 13 files) and pack it for the leaderboard, or say why it would be refused.

    \b
    mft submit generations_my-model
    mft submit --check generations_my-model.zip
    """
    from mftcoder.app.scoring.submit import check
    from mftcoder.app.scoring.submit import submit as run

    if (folder is None) == (archive is None):
        raise click.UsageError("give a FOLDER, or --check FILE.zip")
    if archive:
        check(archive)
    elif folder:
        run(folder, out, metrics)
