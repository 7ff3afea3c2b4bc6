"""Commands in real processes that cost no import: each is forked from one server, which has imported torch and the package.

One server for each pytest process, started by the first command. A command gets the environment of the test that starts it.
"""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mftcoder.cli import main

PATIENCE = 300
"""Seconds after which a command hangs for certain, on a busy machine too."""
_PRELOADED = [
    "mftcoder.app.training.train",
    "mftcoder.app.results.export",
    "mftcoder.app.scoring.generate",
    "mftcoder.cli",
    "peft",
]
_PRELOADED += ["mftcoder.app.serving.chat", "mftcoder.training.backends.ddp", "tests.forked"]
_PRELOADED += [name for name in ("deepspeed", "bitsandbytes") if importlib.util.find_spec(name)]
_PRELOADED += ["tests.frozen"]
_COMMON = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def context() -> Any:
    """What makes such processes of any function. Beside a GPU they start from nothing: one that was looked at before a fork is lost."""
    if Path("/dev/nvidiactl").exists():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PRELOADED)
    return server


def start(
    arguments: tuple[object, ...],
    output: Path,
    environment: Mapping[str, str] | None = None,
    first: Callable[[], object] = bool,
) -> BaseProcess:
    """`mft ARGUMENTS` in a process of its own, which calls `first` before, and writes to `output`.out and `output`.err."""
    words = [str(argument) for argument in arguments]
    whole = {**os.environ, **_COMMON, **(environment or {})}
    process: BaseProcess = context().Process(
        target=_be_the_command, args=(words, str(output), whole, str(Path.cwd()), first)
    )
    process.start()
    return process


def run(
    *arguments: object, environment: Mapping[str, str] | None = None, first: Callable[[], object] = bool
) -> subprocess.CompletedProcess[str]:
    """What `mft ARGUMENTS` ends with and prints."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "command")
        process = start(arguments, output, environment, first)
        code = finish(process)
        printed = [output.with_suffix(suffix).read_text() for suffix in (".out", ".err")]
    return subprocess.CompletedProcess(["mft", *map(str, arguments)], code, *printed)


def finish(process: BaseProcess, patience: float = PATIENCE) -> int:
    """The exit code of a command that ends by itself; one that hangs is killed, and its code says so."""
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode or 0


def _be_the_command(
    words: list[str], output: str, environment: dict[str, str], cwd: str, first: Callable[[], object]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        with open(f"{output}{suffix}", "wb") as file:  # noqa: PTH123
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["mft", *words]
    first()
    main(words)
