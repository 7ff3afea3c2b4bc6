"""`mft data synthesize`: a command a method, one for a recipe, one that copies the prompts out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.data.curate import print_steps
from mftcoder.cli.options import COUNT, PATH, Finite
from mftcoder.errors import BudgetSpent, DataError

if TYPE_CHECKING:
    from mftcoder.app.data.synthesize import Synthesized

_OPTIONS = (
    click.option("--endpoint", "url", required=True, metavar="URL", help="Base URL, such as http://localhost:8000/v1."),
    click.option("--model", required=True, help="The model's name at the endpoint."),
    click.option("--out", "output_dir", type=PATH, required=True, help="Output directory."),
    click.option(
        "--api-key-env", metavar="NAME", help="Environment variable with the API key (default: OPENAI_API_KEY if set)."
    ),
    click.option("--temperature", type=Finite(0, 2), help="0 is greedy decoding (default: 0.7)."),
    click.option("--max-tokens", type=COUNT, help="Most tokens of an answer (default: 2048)."),
    click.option("--concurrency", type=COUNT, help="Requests at the same time (default: 8)."),
    click.option("--requests-per-minute", type=Finite(0, min_open=True), help="Most requests sent in a minute."),
    click.option(
        "--timeout", "timeout_seconds", type=Finite(0, min_open=True), help="Seconds for a request (default: 120)."
    ),
    click.option("--budget-requests", type=COUNT, help="Stop before more requests than this."),
    click.option("--budget-tokens", type=COUNT, help="Stop before more tokens than this, of questions and answers."),
    click.option(
        "--budget-cost", type=Finite(0, min_open=True), help="Stop before it costs more; needs the two prices."
    ),
    click.option("--price-in", type=Finite(0), help="Price of a million tokens of questions."),
    click.option("--price-out", type=Finite(0), help="Price of a million tokens of answers."),
    click.option(
        "--prompts",
        type=PATH,
        metavar="FOLDER",
        help="Prompts of your own; `mft data synthesize prompts` copies ours out.",
    ),
    click.option("--limit", type=COUNT, metavar="N", help="Take only the first N topics, records or pieces."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of choices and requests (default: 42)."),
)
_OF_ENDPOINT = (
    "url", "model", "api_key_env", "temperature", "max_tokens", "concurrency", "requests_per_minute", "timeout_seconds", "price_in",
    "price_out",
)  # fmt: skip


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every method."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group("synthesize", short_help="Let a model behind an OpenAI-compatible endpoint write records.")
def group() -> None:
    """Let a model behind an OpenAI-compatible endpoint write training data.

    Every request is kept in OUT/requests.journal with its answer and its tokens: a stopped command goes on without asking again. The
    API key comes from the environment and is written nowhere. Exit code 3: the budget is spent, and what is finished is written.

    \b
    mft data synthesize exercises topics.txt --endpoint http://localhost:8000/v1 --model NAME --out data/exercises
    mft data synthesize evol data/chat --endpoint http://localhost:8000/v1 --model NAME --out data/evol
    mft data synthesize oss my-repository --endpoint http://localhost:8000/v1 --model NAME --out data/oss
    mft data synthesize recipe recipes/exercises_27k.yaml
    """


@group.command("exercises", short_help="Exercises on the topics of a text file.")
@click.argument("topics", type=PATH)
@click.option("--language", help="Programming language of the exercises (default: Python).")
@click.option("--variants", type=COUNT, help="Sharpened requests per topic (default: 1).")
@click.option("--exercises", type=COUNT, help="Exercises that are asked for in one request (default: 10).")
@_shared
def _exercises(topics: Path, **options: Any) -> None:
    """Write exercises on the topics of a text file, one topic a line.

    The six steps of CodeExercise-Python-27k: topics, a fixed request for each, a model that sharpens it, questions, answers, and no two
    alike. Another model for the sharpening needs a recipe.

    \b
    mft data synthesize exercises topics.txt --endpoint http://localhost:8000/v1 --model NAME --out data/exercises
    mft data synthesize exercises topics.txt --exercises 1 --limit 10 --budget-requests 40 \\
        --endpoint http://localhost:8000/v1 --model NAME --out data/exercises
    """
    _run("exercises", {"topics": str(topics)}, ("language", "variants", "exercises"), options)


@group.command("evol", short_help="Harder questions from those of your records.")
@click.argument("records", type=PATH, nargs=-1, required=True)
@click.option("--rounds", type=COUNT, help="Times that a question is made harder (default: 3).")
@click.option(
    "--judge/--no-judge", default=None, help="Ask whether a version is harder than the one before (default: ask)."
)
@_shared
def _evol(records: tuple[Path, ...], **options: Any) -> None:
    """Make the questions of RECORDS harder, round by round, and let the model answer them (Evol-Instruct).

    RECORDS are files or folders of JSONL in any dialect; their answers are not used. Versions that are unchanged, speak of the prompt,
    or ask for nothing new are eliminated, and are listed in dropped.jsonl.

    \b
    mft data synthesize evol data/chat --rounds 2 --endpoint http://localhost:8000/v1 --model NAME --out data/evol
    """
    _run("evol", {"records": [str(path) for path in records]}, ("rounds", "judge"), options)


@group.command("oss", short_help="Problems inspired by pieces of your code.")
@click.argument("folder", type=PATH)
@click.option("--snippets", type=COUNT, help="Pieces of code that are taken (default: 1000).")
@click.option("--lines", type=COUNT, help="Most lines of a piece (default: 15).")
@_shared
def _oss(folder: Path, **options: Any) -> None:
    """Write problems with solutions, inspired by pieces of the code in FOLDER (OSS-Instruct).

    The pieces are sent to the endpoint.

    \b
    mft data synthesize oss my-repository --snippets 500 --endpoint http://localhost:8000/v1 --model NAME --out data/oss
    """
    _run("oss", {"folder": str(folder)}, ("snippets", "lines"), options)


@group.command("tests", short_help="Tests for the Python answers of your records.")
@click.argument("records", type=PATH, nargs=-1, required=True)
@click.option("--count", type=COUNT, help="Tests that are asked for (default: 5).")
@click.option(
    "--answers", type=click.IntRange(0), help="Further answers; a test needs more than half of all (default: 0)."
)
@click.option("--mutants", type=COUNT, help="Buggy variants of the code that are tried (default: 5).")
@_shared
def _tests(records: tuple[Path, ...], **options: Any) -> None:
    """Write tests for the Python code in the answers of RECORDS, and run them in the sandbox.

    Tests are kept if the code passes them and at least one variant of it with a bug fails. Each makes an example of writing tests
    (write_tests), and a copy of its record with the field `tests` (tested).

    \b
    mft data synthesize tests data/chat --answers 4 --endpoint http://localhost:8000/v1 --model NAME --out data/tests
    """
    _run("tests", {"records": [str(path) for path in records]}, ("count", "answers", "mutants"), options)


@group.command("repair", short_help="Answers that fail their tests, repaired.")
@click.argument("records", type=PATH, nargs=-1, required=True)
@click.option("--answer", is_flag=True, default=None, help="Let the model write the first answer too.")
@click.option("--rounds", type=COUNT, help="Attempts to repair an answer (default: 3).")
@_shared
def _repair(records: tuple[Path, ...], **options: Any) -> None:
    """Run the answers of RECORDS against their tests, and let the model repair those that fail, from what the sandbox says.

    RECORDS have a question and a field such as `tests`. Code that passes makes an example of repair (repair), and a record of the question
    with that code (repaired), whose field `samples` holds the answers that failed.

    \b
    mft data synthesize repair data/tests/tested --answer --endpoint http://localhost:8000/v1 --model NAME --out data/repair
    """
    _run("repair", {"records": [str(path) for path in records]}, ("answer", "rounds"), options)


@group.command("recipe", short_help="Any of these by a YAML or JSON file.")
@click.argument("recipe", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
def _recipe(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Synthesize by a YAML or JSON file, which can hold all options.

    \b
    mft data synthesize recipe recipes/exercises_27k.yaml endpoint.url=http://localhost:8000/v1 endpoint.model=NAME
    """
    from mftcoder.app.data.synthesize import synthesize_recipe

    with shown(stderr=True) as on_progress:
        made = synthesize_recipe(recipe, overrides, on_progress=on_progress)
    _end(made)


@group.command("prompts", short_help="Copy the prompts out, to be edited.")
@click.argument("folder", type=PATH)
def _prompts(folder: Path) -> None:
    """Copy all prompts into FOLDER, to be edited and given to --prompts.

    \b
    mft data synthesize prompts my-prompts
    """
    from mftcoder.app.data.synthesize import copy_prompts

    for path in copy_prompts(folder):
        console().print(str(path), highlight=False, markup=False, soft_wrap=True)


def _run(method: str, section: dict[str, Any], names: tuple[str, ...], options: dict[str, Any]) -> None:
    """Synthesize with the options of the command line; one that was not given has the config's default."""
    from mftcoder.app.data.synthesize import synthesize_options

    given = {name: value for name, value in options.items() if value is not None}
    budget = {name: given[f"budget_{name}"] for name in ("requests", "tokens", "cost") if f"budget_{name}" in given}
    raw: dict[str, Any] = {
        method: {**section, **{name: given[name] for name in names if name in given}},
        "endpoint": {name: given[name] for name in _OF_ENDPOINT if name in given},
        "budget": budget,
        **{name: given[name] for name in ("limit", "seed") if name in given},
        **{name: str(given[name]) for name in ("prompts", "output_dir") if name in given},
    }
    with shown(stderr=True) as on_progress:
        made = synthesize_options(raw, on_progress=on_progress)
    _end(made)


def _end(made: "Synthesized") -> None:
    """Print what came of it. A spent budget and an empty result have exit codes of their own."""
    print_synthesized(made)
    kept = made.manifest["kept"]
    if made.unfinished:
        raise BudgetSpent(
            f"{made.unfinished}. What is finished is written; the same command with a larger budget goes on"
        )
    if not kept:
        raise DataError(f"{made.folder}: no record is left. Its README.md shows what each rule dropped")


def print_synthesized(made: "Synthesized") -> None:
    """What each step dropped, what each model used, and the tasks of a config."""
    from mftcoder.reporting.terminal import print_table

    output, manifest = console(), made.manifest
    print_steps(output, manifest["steps"])
    output.print()
    used = [
        [name, *(f"{row[column]:,}" for column in _USED.values()), f"{row['cost']:.4g}" if "cost" in row else ""]
        for name, row in manifest["requests"]["models"].items()
    ]
    print_table(output, ("model", *_USED, "cost"), used, numbers=(*_USED, "cost"))
    output.print()
    for line in (f"{manifest['kept']:,} records -> {made.folder}", *made.task_lines()):
        output.print(line, highlight=False, markup=False, soft_wrap=True)


_USED = {"requests": "attempts", "answers": "answers", "tokens in": "prompt_tokens", "tokens out": "completion_tokens"}
