"""`mft assist`."""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import COUNT, PATH, Finite, engine, load, model_options, template
from mftcoder.errors import ConfigError

if TYPE_CHECKING:
    from mftcoder.app.serving.assist import Assistant, Proposal

_SHARED = (
    click.option("--url", help="OpenAI-compatible endpoint (default: that of mft serve, http://127.0.0.1:8000/v1)."),
    click.option("--model-name", help="The model's name at the endpoint (default: the first that it lists)."),
    click.option("--model", help="A model folder, Hub id, .gguf file or run folder to load here instead."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable with the key (default: OPENAI_API_KEY)."),
    click.option(
        "--folder",
        type=PATH,
        default=Path(),
        show_default=False,
        help="Working folder (default: this one). Nothing outside it is touched.",
    ),
    click.option("--rounds", type=click.IntRange(1, 20), default=3, help="Answers at most."),
    click.option("--temperature", type=Finite(0, 2), default=0.2, help="0 is greedy decoding."),
    click.option("--max-tokens", type=COUNT, default=1024, help="Most tokens of an answer."),
    click.option(
        "--timeout",
        "timeout_seconds",
        type=Finite(0.1, 86400),
        default=300,
        help="Seconds for an answer of an endpoint.",
    ),
    template,
    engine,
    load,
    model_options,
)
MOST_PIPED = 1 << 20
_MUTANTS = click.option("--mutants", type=click.IntRange(1, 100), default=10, help="Mutants that judge the tests.")
_APPLY = click.option("--apply", "applied", is_flag=True, help="Write the change into the file.")
_OUT = click.option("--out", type=PATH, help="Write the patch or the tests into this new file.")
_TESTS = click.option("--tests", metavar="FILE", help="Your tests of the function (default: the model writes some).")


def _verb(*more: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a verb: those that all have, behind its own."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (*reversed(_SHARED), *reversed(more)):
            function = option(function)
        return function

    return wrap


@click.group("assist", short_help="Complete, comment, explain, test, optimise, fix, review.")
def group() -> None:
    """Let a model work on your code, and check what it answers.

    An answer that does not hold is refused, whatever the model says: see docs/assistant.md. Nothing is written without --apply or --out,
    and code runs in the sandbox only.

    \b
    mft assist comment shapes.py:area --apply
    mft assist test shapes.py:area --out test_area.py
    git diff | mft assist review
    """


@group.command("complete", short_help="The rest of a line, or a block.")
@click.argument("place", metavar="FILE:LINE[:COL]")
@click.option("--block/--line", "block", default=None, help="A block or one line (default: by the position).")
@_verb(_APPLY, _OUT)
def complete(place: str, block: bool | None, **options: Any) -> None:
    """Write what belongs at a position. Nothing else changes, and the file gets no new syntax error."""
    _run(lambda assistant: assistant.complete(place, block=block), options)


@group.command("comment", short_help="A docstring and comments; the program stays the same.")
@click.argument("place", metavar="FILE[:FUNCTION|:LINE]")
@_verb(_APPLY, _OUT)
def comment(place: str, **options: Any) -> None:
    """Write a docstring and comments. An answer that changes the program is refused."""
    _run(lambda assistant: assistant.comment(place), options)


@group.command("explain", short_help="What code does, in prose.")
@click.argument("place", metavar="FILE[:FUNCTION|:LINE]")
@_verb(_OUT)
def explain(place: str, **options: Any) -> None:
    """Say what a function or a file does."""
    _run(lambda assistant: assistant.explain(place), options)


@group.command("test", short_help="Tests that pass, and fail on mutants.")
@click.argument("place", metavar="FILE:FUNCTION|:LINE")
@_verb(_OUT, _MUTANTS)
def test(place: str, **options: Any) -> None:
    """Write tests that pass on the function, and of which each fails on at least one mutant of it."""
    _run(lambda assistant: assistant.test(place), options)


@group.command("optimise", short_help="Better code, held by tests, as a patch.")
@click.argument("place", metavar="FILE[:FUNCTION|:LINE]")
@_verb(_APPLY, _OUT, _TESTS, _MUTANTS)
def optimise(place: str, tests: str | None, **options: Any) -> None:
    """Rewrite a function. Tests that find mutants of it stay green; name and signature stay; nothing else changes."""
    _run(lambda assistant: assistant.optimise(place, tests=tests), options)


@group.command("fix", short_help="A function without the error of a log.")
@click.argument("place", metavar="FILE[:FUNCTION|:LINE]")
@click.option("--error", "log", type=PATH, required=True, help="The log that ends with the error; - reads a pipe.")
@_verb(_APPLY, _OUT, _TESTS, _MUTANTS)
def fix(place: str, log: Path, tests: str | None, **options: Any) -> None:
    """Correct a function. A test shows the error before and passes after; tests of what works today stay green."""

    def work(assistant: "Assistant") -> "Proposal":
        return assistant.fix(
            place, _input(log, assistant, MOST_PIPED), tests=tests
        )  # a log says at its end what failed

    _run(work, options)


@group.command("review", short_help="Findings about the lines that a diff adds.")
@click.option("--diff", type=PATH, default=Path("-"), show_default=False, help="A unified diff (default: from a pipe).")
@_verb(_OUT)
def review(diff: Path, **options: Any) -> None:
    """Review a diff. Findings about lines that it does not add are left out."""
    _run(lambda assistant: assistant.review(_input(diff, assistant)), options)


@group.command("mcp", short_help="The verbs as tools over MCP (stdio).")
@click.option("--allow-apply", is_flag=True, help="Let callers of the tools write accepted changes into files.")
@_verb(_MUTANTS)
def mcp(allow_apply: bool, **options: Any) -> None:
    """Serve the verbs as tools of the Model Context Protocol over stdin and stdout, for editors and agents."""
    if find_spec("mcp") is None:
        raise ConfigError("mft assist mcp needs mcp, not installed here. Install with: pip install 'mftcoder[assist]'")
    from mftcoder.app.serving.assist import open_assistant, serve_tools

    with shown(stderr=True):
        opened = open_assistant(**options)
    with opened as assistant:
        serve_tools(assistant, allow_apply=allow_apply)


def _input(path: Path, assistant: "Assistant", last: int | None = None) -> str:
    """A file, or what comes through a pipe: whole, at most MOST_PIPED bytes, or so many of its `last`."""
    if path != Path("-"):
        return assistant.read_text(path, last)
    if sys.stdin.isatty():
        raise click.UsageError("give a file, or text through a pipe")
    end = b""
    while more := sys.stdin.buffer.read(MOST_PIPED):
        if last is None and len(end + more) > MOST_PIPED:
            raise ConfigError(f"the text of the pipe: has more than {MOST_PIPED >> 20} MB")
        end = (end + more)[-MOST_PIPED:]
    return end.decode(errors="replace")


def _run(work: "Callable[[Assistant], Proposal]", options: Mapping[str, Any]) -> None:
    """Make a proposal, print it, and write what was asked for."""
    from mftcoder.app.serving.assist import open_assistant

    chosen = dict(options)
    applied, out = chosen.pop("applied", False), chosen.pop("out", None)
    with shown(stderr=True):
        opened = open_assistant(**chosen)
    with opened as assistant:
        if out is not None and assistant.folder.inside(out).exists():
            raise ConfigError(f"{out}: exists already. Give another name with --out")
        proposal = work(assistant)
        _print(proposal, is_written=applied or out is not None)
        if applied:
            click.echo(f"applied to {assistant.apply(proposal)}", err=True)
        if out is not None:
            click.echo(f"wrote {assistant.save(proposal, out)}", err=True)


def _print(proposal: "Proposal", *, is_written: bool) -> None:
    """The result to stdout; what was refused, the score and the notes to stderr."""
    for refusal in proposal.refusals:
        click.echo(f"refused: {refusal.line}", err=True)
    if proposal.verb != "test" and proposal.tests:
        click.echo(f"held by these tests:\n{proposal.tests}", err=True)
    click.echo((proposal.patch or proposal.text).rstrip("\n"))
    for note in (proposal.score, *proposal.notes):
        if note:
            click.echo(note, err=True)
    if proposal.new_text is not None and not is_written:
        click.echo("nothing is written; --apply does it", err=True)
