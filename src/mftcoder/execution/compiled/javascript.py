"""JavaScript: one Node process runs the tests, another holds the answer.

As in Java the tests' process stays, and only plain data crosses. A failing `console.assert`, which on its own only prints, is a
failure here.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from mftcoder.execution.compiled.claims import lift
from mftcoder.execution.compiled.judging import Sides
from mftcoder.execution.compiled.plan import MEMORY_MB
from mftcoder.execution.compiled.run import Command, CommandSide, Server, ServerSide
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

_BRIDGE = Path(str(files("mftcoder.execution.compiled"))) / "bridge"
_HALVES = ("tests.js", "answer.js")
_SERVER_MB = 1024
_SPACE_MB = 4096  # address space that Node reserves
_FOR_EVER = 1e6  # seconds


class JavaScriptRunner:
    """Runs a slot's programs."""

    def __init__(self, toolchain: Toolchain, tests_zygote: ZygoteHandle):
        node = (toolchain.tools["node"], f"--max-old-space-size={MEMORY_MB}")
        self.answers = (*node, f"{toolchain.cache}/answer.js")
        served = Command((*node, f"{toolchain.cache}/tests.js"), _SERVER_MB, _FOR_EVER, address_mb=_SPACE_MB)
        self.server = Server(served, tests_zygote)

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        """Both sides."""
        lifted = lift(program.files["tests"], "js", [program.files["entry_point"]])
        asks = {"helpers": program.files["helpers"], "tests": lifted.tests, "entry_point": program.files["entry_point"]}
        tests = ServerSide(self.server, lambda change: (b"t", json.dumps({**asks, "change": change}).encode()))
        command = Command(
            self.answers, limits.memory_mb, limits.seconds, address_mb=_SPACE_MB, kept_kb=limits.output_kb
        )
        source = b"c", program.files["candidate"].encode(errors="replace")
        yield Sides(CommandSide(command, zygote, limits, first=source), tests, lifted.claims)

    def close(self) -> None:
        """End the tests' sandbox."""
        self.server.close()


def runner(toolchain: Toolchain, tests_zygote: ZygoteHandle) -> JavaScriptRunner:
    """What runs a slot's programs."""
    return JavaScriptRunner(toolchain, tests_zygote)


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Put the two halves where the sandbox can read them. Node needs no flag to start as fast as it can."""
    halves = {name: (_BRIDGE / name).read_text() for name in _HALVES}

    def build(folder: Path) -> None:
        for name, text in halves.items():
            (folder / name).write_text(text)

    cache = cached("js", "".join(halves.values()), build)
    version = output_of(tools["node"], "--version").strip()
    return Toolchain("js", tools, cache, (cache, str(Path(tools["node"]).resolve())), version)
