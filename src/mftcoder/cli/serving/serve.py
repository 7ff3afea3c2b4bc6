"""`mft serve`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mftcoder.cli.console import shown
from mftcoder.cli.options import COUNT, PATH, Finite, load, model_options, template
from mftcoder.errors import ConfigError


class NamedPath(click.ParamType):
    """`name=path`."""

    name = "named path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, Path]:
        """The name and the path, or click's error."""
        if isinstance(value, tuple):
            return value
        name, separator, path = str(value).partition("=")
        if not separator or not name or not path:
            self.fail(f"{value}: give NAME=FOLDER", parameter, context)
        return name, Path(path)


@click.command("serve", short_help="Serve a model to editors and agents (OpenAI protocol).")
@click.argument("model")
@click.argument("engine_flags", nargs=-1, metavar="[-- VLLM FLAGS]")
@click.option(
    "--engine",
    type=click.Choice(["auto", "transformers", "openvino", "vllm"]),
    default="auto",
    help="auto: vllm on a GPU and openvino on a CPU, where they are installed and can run the model.",
)
@click.option("--host", default="127.0.0.1", help="Address. Others than this machine need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any that is free.")
@click.option("--name", help="Name of the model for clients (default: from MODEL).")
@click.option(
    "--adapter",
    "adapters",
    type=NamedPath(),
    multiple=True,
    metavar="NAME=FOLDER",
    help="A LoRA adapter (a run folder or a peft folder) over MODEL, served by its name; may be repeated.",
)
@click.option("--api-key-file", type=PATH, help="File with API keys, one a line (also: MFTCODER_API_KEY).")
@template
@click.option("--batch-size", type=COUNT, default=64, help="Texts generated at the same time.")
@click.option("--cache-tokens", type=COUNT, default=32768, help="Size of the key-value cache, and longest context.")
@click.option("--max-requests", type=COUNT, default=512, help="Texts in work or waiting; more get 429.")
@click.option("--max-body-mb", type=Finite(min=0, min_open=True), default=8, help="A larger request gets 413.")
@click.option("--grace-seconds", type=COUNT, default=300, help="Longest wait for answers after SIGTERM.")
@click.option("--ui", is_flag=True, help="Offer a page: chat, run code in the sandbox, compare two models and vote.")
@click.option("--votes", type=PATH, default=Path("votes.jsonl"), help="File for the page's preference records.")
@load
@model_options
def command(model: str, engine_flags: tuple[str, ...], adapters: tuple[tuple[str, Path], ...], **options: Any) -> None:
    """Serve MODEL: /v1/chat/completions, /v1/completions, /v1/models, /infill, /health, /metrics.

    MODEL is a model folder, a Hub id, a .gguf file or a run folder. Ctrl-C or SIGTERM completes the answers in work and stops.

    \b
    mft serve models/my
    mft serve models/my --ui
    mft serve models/base --adapter tests=runs/tests --adapter repair=runs/repair
    mft serve models/my --host 0.0.0.0 --api-key-file keys.txt
    mft serve models/my --engine vllm -- --tensor-parallel-size 2 --enable-prefix-caching
    """
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"mft serve needs {', '.join(missing)}, not installed here. Install with: pip install 'mftcoder[serve]'"
        )
    names = [name for name, _ in adapters]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--adapter {', '.join(sorted(twice))}: the name is given twice")
    from mftcoder.app.serving.serve import serve

    with shown(stderr=True):
        serve(model, engine_flags=engine_flags, adapters=dict(adapters), **options)
