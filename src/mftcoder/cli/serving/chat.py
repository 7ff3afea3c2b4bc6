"""`mft chat`: the terminal side of a conversation."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import COUNT, SEED, Finite, engine, load, model_options, template
from mftcoder.errors import MftError

if TYPE_CHECKING:
    from mftcoder.app.serving.chat import Chat, Sandbox

HELP = """/system TEXT     set the system message and begin anew; without TEXT show it
/reset           forget the conversation
/params          show the settings; /params temperature=0.7 top_p=1 changes them
/save FILE       append the conversation to FILE (.jsonl), as a record that mft train reads
/run             run the last code block of the last answer in the sandbox
/help, /quit     this list, the end (also Ctrl-D)
A line that ends with \\ goes on in the next one; \"\"\" begins and ends a text of several lines. Ctrl-C ends an answer or a program."""
QUOTES = '"""'


@click.command("chat", short_help="Talk to a model, or ask it once.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", default="", show_default=False, help="System message.")
@template
@click.option("--max-new-tokens", type=COUNT, default=512, help="Most tokens of an answer.")
@click.option("--temperature", type=Finite(min=0), default=0.1, help="0 is greedy decoding.")
@click.option("--top-p", type=Finite(0, 1, min_open=True), default=0.95, help="Nucleus sampling.")
@click.option("--seed", type=SEED, help="Seed of sampling (default: another one for each answer).")
@engine
@load
@model_options
def command(model: str, prompt: str | None, **options: Any) -> None:
    """Talk to MODEL in the template of its training. With PROMPT, or text from a pipe, answer once.

    MODEL is a model folder, a Hub id, a .gguf file or a run folder. /help lists what can be typed besides questions.

    \b
    mft chat models/my
    mft chat models/my "write a python function of quick sort."
    git diff | mft chat models/my "explain"
    """
    from mftcoder.app.serving.chat import open_chat

    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    question = "\n\n".join(part for part in (prompt, piped) if part and part.strip())
    if not question and not sys.stdin.isatty():
        raise click.UsageError("nothing is asked: give a PROMPT, or text from a pipe")
    with shown(stderr=True):
        chat = open_chat(model, **options)
    if question:
        _write(chat, question)
        return
    with ExitStack() as stack:
        _talk(chat, stack)


def _write(chat: "Chat", question: str) -> None:
    """Print an answer as it is written: the answer to stdout, its speed to stderr."""
    from rich.console import Console

    try:
        for piece in chat.answer(question):
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    click.echo()
    Console(stderr=True).print(chat.written.line, style="dim", highlight=False)


def _talk(chat: "Chat", stack: ExitStack) -> None:
    """Questions and commands until the end of the input."""
    import readline  # noqa: F401  # gives input() a history and editing

    click.echo("/help lists the commands; Ctrl-D ends.", err=True)
    sandboxes: list[Sandbox] = []

    def sandbox() -> "Sandbox":
        if not sandboxes:
            from mftcoder.app.serving.chat import Sandbox

            sandboxes.append(stack.enter_context(Sandbox(workers=1)))
        return sandboxes[0]

    for text in _inputs():
        try:
            if text.startswith("/"):
                if not _command(chat, text, sandbox):
                    return
            else:
                _write(chat, text)
        except MftError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
        except KeyboardInterrupt:  # ends a program, not the conversation
            click.echo()


def _inputs() -> Iterator[str]:
    """What is typed, without empty inputs, until Ctrl-D."""
    while True:
        try:
            text = _one_input()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if text:
            yield text


def _one_input() -> str:
    """A line, lines that end with a backslash, or lines between triple quotes."""
    line = input(">>> ")
    if line.lstrip().startswith(QUOTES):
        lines = [line.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... "))
    return "\n".join(lines).strip()


def _command(chat: "Chat", text: str, sandbox: Callable[[], "Sandbox"]) -> bool:
    """Carry out a command; False ends the conversation. MftError for one that does not exist or cannot be done."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/reset":
        chat.reset()
    elif name == "/system":
        if rest:
            chat.system = rest
            chat.reset()
        click.echo(chat.system or "no system message")
    elif name == "/params":
        for assignment in rest.split():
            chat.set(assignment)
        seed = "another one for each answer" if chat.random_seed else chat.sampling.seed
        one = chat.sampling
        click.echo(f"temperature={one.temperature} top_p={one.top_p} max_new_tokens={one.max_new_tokens} seed={seed}")
    elif name == "/save":
        if not rest:
            raise MftError("/save: give the FILE, such as talk.jsonl")
        chat.save(Path(rest))
        click.echo(f"saved to {rest}")
    elif name == "/run":
        click.echo(chat.run_last_code(sandbox()), nl=False)
    elif name == "/help":
        click.echo(HELP)
    else:
        raise MftError(f"{text}: no such command. /help lists them")
    return True
