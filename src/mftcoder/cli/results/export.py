"""`mft export`."""

from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import COUNT, PATH, SEED, Finite, Names, checkpoint, data_dir, dtype

ONLY_QUANTIZED = (
    "llama_quantize",
    "python",
    "group_size",
    "calibration",
    "calibration_samples",
    "answer_tokens",
    "seed",
    "validation_samples",
    "max_loss_increase",
    "exams",
    "data_dir",
)


@click.command("export", short_help="Write a run's model as a Hugging Face folder, or quantized.")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH, required=False)
@checkpoint
@dtype
@click.option(
    "--compare/--no-compare",
    default=None,
    help="For a QLoRA run: compare its predictions with the merged model's.  [default: compare]",
)
@click.option("--as-trained", is_flag=True, help="For a QLoRA run: merge into the base as its 4 or 8 bits held it.")
@click.option(
    "--quantize",
    metavar="METHOD",
    help="Write fewer bits: gptq, awq, int8, fp8, gguf:Q8_0, gguf:Q4_0, ... RUN may be any model.",
)
@click.option(
    "--validation-samples", type=COUNT, metavar="N", help="Measure at most N samples of a task.  [default: 100]"
)
@click.option(
    "--max-loss-increase",
    type=Finite(0),
    metavar="X",
    help="Refuse a release whose loss rises more (default: by its bits).",
)
@click.option("--exam", "exams", type=Names(), metavar="NAME,...", help="Measure pass@1 of these benchmarks, too.")
@data_dir
@click.option("--calibration", type=PATH, metavar="FILE", help="For gptq and awq: records with prompt and answer.")
@click.option(
    "--calibration-samples", type=COUNT, metavar="N", help="For gptq and awq: calibrate on N texts.  [default: 128]"
)
@click.option("--answer-tokens", type=COUNT, metavar="N", help="Longest own answer of the calibration.  [default: 256]")
@click.option("--seed", type=SEED, help="Draws the questions of the calibration.  [default: 0]")
@click.option("--group-size", type=COUNT, metavar="N", help="For gptq and awq: weights of a row that share a scale.")
@click.option(
    "--python", metavar="FILE", help="An interpreter with llmcompressor (default: an environment in the cache)."
)
@click.option("--llama-quantize", metavar="FILE", help="llama.cpp's program, for gguf:Q4_K_M and its like.")
@click.option("--verify", is_flag=True, help="Check an exported folder against its checksums instead.")
def command(
    run: Path, out: Path | None, verify: bool, quantize: str | None, compare: bool | None, **options: Any
) -> None:
    """Write the model of RUN into the new folder OUT: merged weights, tokenizer, chat template, model card, checksums.

    \b
    mft export runs/my models/my
    mft export runs/my models/my-20 --checkpoint step-00000020 --dtype float32
    mft export runs/my models/my-q4 --quantize gguf:Q4_0
    mft export --verify models/my
    """
    if verify == (out is not None):
        raise click.UsageError("give RUN and OUT, or --verify and one exported folder")
    of_quantize = {name: options.pop(name) for name in ONLY_QUANTIZED}
    given = {name: value for name, value in of_quantize.items() if value is not None}
    if given and not quantize:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-').replace('exams', 'exam')} is for --quantize")
    if quantize and verify:
        raise click.UsageError("--quantize writes a folder, and --verify only reads one. Leave one out")
    if quantize and compare is not None:
        raise click.UsageError("--compare and --no-compare have no effect on --quantize, which measures losses instead")
    if out is None:
        from mftcoder.app.results.verify import verify_folder

        verify_folder(run)
        console().print(f"{run}: every file is as it was written", highlight=False, soft_wrap=True)
    elif quantize:
        from mftcoder.app.results.quantize import quantize as quantized

        with shown(stderr=True):
            release = quantized(run, out, quantize, **options, **given)
        console().print(release.table(), markup=False, highlight=False, soft_wrap=True)
    else:
        from mftcoder.app.results.export import export

        with shown(stderr=True):
            export(run, out, compare=compare is not False, **options)
