"""JavaScript: one Node process runs the tests and stays, a new one holds each answer.

A failing `console.assert` only prints in Node; here it fails the tests.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mftcoder.execution.compiled.claims import instrument
from mftcoder.execution.compiled.judging import Sides
from mftcoder.execution.compiled.plan import BRIDGE, MEMORY_MB, Build, shell
from mftcoder.execution.compiled.run import Command, CommandSide, Server, ServerSide, compiled_alone
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

_SCRIPTS = ("tests.js", "answer.js", "values.js")
_SERVER_MB = 1024
_ADDRESS_MB = 4096  # address space that Node reserves
_UNLIMITED = 1e6  # seconds


class JavaScriptRunner:
    """Runs a slot's programs."""

    def __init__(self, toolchain: Toolchain, tests_zygote: ZygoteHandle):
        node = (toolchain.tools["node"], f"--max-old-space-size={MEMORY_MB}")
        self.answers = (*node, f"{toolchain.cache}/answer.js")
        command = Command((*node, f"{toolchain.cache}/tests.js"), _SERVER_MB, _UNLIMITED, address_mb=_ADDRESS_MB)
        self.server = Server(command, tests_zygote)

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        helpers, entry_point = program.files["helpers"], program.files["entry_point"]
        instrumented = instrument(program.files["tests"], "js", [entry_point])
        request = {"helpers": helpers, "tests": instrumented.tests, "entry_point": entry_point}
        judge = ServerSide(self.server, lambda change: (b"t", json.dumps({**request, "change": change}).encode()))
        command = Command(
            self.answers, limits.memory_mb, limits.seconds, address_mb=_ADDRESS_MB, kept_kb=limits.output_kb
        )
        source = b"c", program.files["candidate"].encode(errors="replace")
        yield Sides(CommandSide(command, zygote, limits, first=source), judge, instrumented.claims)

    def compile(self, code: str, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """Whether the code parses, as a script or as a module; it does not run."""
        script = '{ "$1" --check answer.js 2>/dev/null || "$1" --check answer.mjs; } && echo done > program'
        build = Build({"answer.js": code, "answer.mjs": code}, shell(script, self.answers[0]))
        return compiled_alone(build, limits, zygote)

    def warnings(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """Nothing: Node has no linter."""
        return ExecutionResult("passed")

    def close(self) -> None:
        self.server.close()


runner = JavaScriptRunner


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Copy the bridge to a folder that programs may read."""
    scripts = {name: (BRIDGE / name).read_text() for name in _SCRIPTS}

    def build(folder: Path) -> None:
        for name, text in scripts.items():
            (folder / name).write_text(text)

    cache = cached("js", "".join(scripts.values()), build)
    version = output_of(tools["node"], "--version").strip()
    return Toolchain("js", tools, cache, (cache, str(Path(tools["node"]).resolve())), version)
