"""The server as a process: its address, its keys, its life from the first request to the last stream."""

import gc
import ipaddress
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

from mftcoder.errors import ConfigError
from mftcoder.generation.live_engine import Deliver, RequestEngine
from mftcoder.serving.app import Api, make_app
from mftcoder.serving.catalogue import Catalogue
from mftcoder.serving.guard import OPEN_PATHS, Guard
from mftcoder.serving.metrics import Metrics
from mftcoder.serving.ui import PAGE, Ui
from mftcoder.serving.writing import Writer

KEY_VARIABLE = "MFTCODER_API_KEY"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a file (one a line, # begins a comment) and of the environment variable. ConfigError for unusable ones."""
    lines = os.environ.get(KEY_VARIABLE, "").split(",")
    if file is not None:
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file}: cannot be read: {error}") from error
    keys = [stripped for line in lines if (stripped := line.strip()) and not stripped.startswith("#")]
    if any(not re.fullmatch("[!-~]{8,512}", key) for key in keys):
        raise ConfigError(
            f"{file or KEY_VARIABLE}: a key has 8 to 512 visible ASCII characters without spaces; one of them has not"
        )
    if file is not None and not keys:
        raise ConfigError(f"--api-key-file {file}: holds no key")
    return tuple(dict.fromkeys(keys))


def bind(host: str, port: int, keys: Sequence[str]) -> socket.socket:
    """A socket at the address that does not listen yet. ConfigError if it is taken, or open to the network without a key."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: {error}") from error
    if not keys and not ipaddress.ip_address(found[4][0]).is_loopback:
        raise ConfigError(
            f"--host {host}: other machines could use this model without a key. Give --api-key-file, or set {KEY_VARIABLE}"
        )
    bound = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
    except OSError as error:
        bound.close()
        raise ConfigError(f"--port {port}: {error.strerror}. Choose another one, or 0 for any that is free") from error
    return bound


def run_server(
    engine_of: Callable[[Deliver], RequestEngine],
    catalogue: Catalogue,
    bound: socket.socket,
    *,
    keys: Sequence[str],
    most_texts: int,
    most_bytes: int,
    grace_seconds: int,
    ui: Ui | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then refuse new connections and return when the last answer is complete.

    `engine_of` makes the engine, given where it delivers its texts to.
    """
    metrics = Metrics()
    writer = Writer(metrics, most_texts)

    @asynccontextmanager
    async def life() -> AsyncIterator[None]:
        import asyncio

        writer.loop = asyncio.get_running_loop()
        with engine_of(writer.deliver) as engine:
            writer.engine = engine
            gc.freeze()  # no collection of cycles looks at the model and the libraries again, which takes 0.1 s in the midst of requests
            yield

    app = make_app(Api(catalogue, writer, metrics), life, ui)
    open_paths = OPEN_PATHS | {PAGE} if ui is not None else OPEN_PATHS  # the page asks for the key itself
    guarded = Guard(app, keys=keys, most_bytes=most_bytes, metrics=metrics, open_paths=open_paths)
    config = uvicorn.Config(
        guarded,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=grace_seconds,
        ws="none",
    )
    # uvicorn raises the signal again after a graceful end, for a parent that waits for it. Here the end is the answer: exit code 0.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bound.close()
        if ui is not None:
            ui.close()
