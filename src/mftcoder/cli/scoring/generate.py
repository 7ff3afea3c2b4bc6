"""`mft generate`."""

from typing import Any

import click

from mftcoder.app.scoring.options import GenerateOptions
from mftcoder.cli.console import shown
from mftcoder.cli.options import COUNT, PATH, SEED, Finite, Names, data_dir, limit, model_options
from mftcoder.cli.scoring.evaluate import run_evaluation


@click.command("generate", short_help="Write a model's answers to benchmarks.")
@click.argument("model")
@click.option("--task", "tasks", type=Names(), default=(), help="Benchmarks or groups of them.", metavar="NAME,...")
@click.option("--preset", help="Published tasks, prompts and settings: qwen-competition. Prints what they are.")
@data_dir
@click.option(
    "--out",
    type=PATH,
    help="Output directory (default: the current one; with --preset generations_NAME in it).",
)
@click.option("--name", help="Name of the model in file names (default: from MODEL).")
@click.option(
    "--mode",
    type=click.Choice(["completion", "instruct", "chat"]),
    default=GenerateOptions.mode,
    help="completion continues the code, instruct puts an instruction before it, chat sends a user message.",
)
@click.option("--prefix", default=GenerateOptions.prefix, show_default=False, help="Text before each prompt.")
@click.option("--suffix", default=GenerateOptions.suffix, show_default=False, help="Text after each prompt.")
@click.option(
    "--system", default=GenerateOptions.system, show_default=False, help="System message for mode chat or a preset."
)
@click.option("--template", help="Chat template for mode chat (default: the run's, else the tokenizer's own).")
@click.option("--n-samples", type=COUNT, default=GenerateOptions.n_samples, help="Samples per problem.")
@click.option(
    "--temperature",
    type=Finite(min=0),
    default=GenerateOptions.temperature,
    help="0 is greedy decoding.",
)
@click.option(
    "--top-p", type=Finite(0, 1, min_open=True), default=GenerateOptions.top_p, help="Nucleus sampling probability."
)
@click.option("--max-new-tokens", type=COUNT, default=GenerateOptions.max_new_tokens, help="Most tokens per sample.")
@click.option("--max-length", type=COUNT, help="Most tokens of prompt and answer together.")
@click.option("--end-token", help="A token that ends an answer, besides the model's own EOS tokens.", metavar="TOKEN")
@click.option("--batch-size", type=COUNT, help="Samples generated at the same time (default: 16, with vllm 256).")
@click.option(
    "--engine",
    default=GenerateOptions.engine,
    help="transformers, openvino, vllm, or auto: vllm on a GPU and openvino on a CPU, where they are installed.",
)
@click.option(
    "--seed", type=SEED, default=GenerateOptions.seed, help="Seed of sampling. Each sample has its own stream."
)
@limit
@model_options
@click.option("--as-trained", is_flag=True, help="Keep a QLoRA run's base in its 4 or 8 bits instead of merging.")
@click.option("--evaluate", "then_evaluate", is_flag=True, help="Evaluate the answers at once, like `mft evaluate`.")
@click.pass_context
def command(
    context: click.Context, model: str, tasks: tuple[str, ...], preset: str | None, then_evaluate: bool, **options: Any
) -> None:
    """Write MODEL's answers to benchmarks: generations_TASK_MODEL.json, ready for `mft evaluate`.

    MODEL is a model folder, a Hub id, a .gguf file or a run folder. The same command continues a stopped one.

    \b
    mft generate models/my --task mini
    mft generate runs/my --task humaneval,mbpp --data-dir data --mode chat --out scores
    mft generate models/my --task humaneval --n-samples 20 --temperature 0.8 --top-p 0.95 --batch-size 64
    mft generate models/my --preset qwen-competition --data-dir data --evaluate
    torchrun --nproc-per-node 8 -m mftcoder generate models/my --task mbpp
    """
    from mftcoder.app.scoring.generate import generate

    if not tasks and preset is None:
        raise click.UsageError("give --task NAME,... or --preset NAME")
    defaults = click.core.ParameterSource.DEFAULT
    typed = {key: value for key, value in options.items() if context.get_parameter_source(key) is not defaults}
    with shown(stderr=True, bars_in_files=True) as on_progress:
        files = generate(model, tasks, preset=preset, on_progress=on_progress, **typed)
    if then_evaluate and files:
        run_evaluation(files, data_dir=options["data_dir"], limit=options["limit"])
