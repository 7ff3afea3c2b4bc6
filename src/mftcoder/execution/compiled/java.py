"""Java: one warm virtual machine compiles and runs the tests, a fresh one holds the answer.

The tests are compiled against the problem's own class, whose method under test asks the other process (bridge/mft/Tests.java); the
answer's classes are loaded there and nowhere else (bridge/mft/Answer.java). What the problem's class declares beside that method,
helpers that the tests use, is compiled from the problem's text and not from the answer's.
"""

import re
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.compiled.claims import Lifted, lift
from mftcoder.execution.compiled.judging import Sides
from mftcoder.execution.compiled.plan import MEMORY_MB
from mftcoder.execution.compiled.relay import EndedError, LateError
from mftcoder.execution.compiled.run import Command, CommandSide, Server, ServerSide
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

# Fast start: one compiler tier and the serial collector; short programs never earn the others back.
_VM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-XX:ActiveProcessorCount=2")
_HEADER = "import java.util.*;\nimport java.lang.*;\nimport java.util.stream.*;\nimport java.math.*;\nimport java.security.*;\n"
_IMPORT = re.compile(r"^[ \t]*import\s+(?:static\s+)?[\w.*]+;", re.MULTILINE)
_BRIDGE = sorted((Path(str(files("mftcoder.execution.compiled"))) / "bridge" / "mft").glob("*.java"))
_SERVER_MB = 1024
_FOR_EVER = 1e6  # seconds


class JavaRunner:
    """Runs a slot's programs. The virtual machine of the tests stays, so it is warm."""

    def __init__(self, toolchain: Toolchain, tests_zygote: ZygoteHandle):
        java = (toolchain.tools["java"], *_VM, f"-Xmx{MEMORY_MB}m")
        classes = ("-cp", f"{toolchain.cache}/bridge.jar")
        self.answers = (
            *java,
            f"-XX:SharedArchiveFile={toolchain.cache}/answer.jsa",
            "-Djava.io.tmpdir=.",
            *classes,
            "mft.Answer",
        )
        served = Command((*java, *classes, "mft.Tests"), _SERVER_MB, _FOR_EVER, 512, 6144, talks_on_stdio=True)
        self.server = Server(served, tests_zygote)

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        """Both sides, or how the answer does not compile. Tests that do not compile are no answer's failure, so they come first."""
        lifted = self._tests(program, limits)
        compiled = self._compiled(program.files["candidate"], limits)
        if isinstance(compiled, ExecutionResult):
            yield compiled
            return
        source = lifted.tests.encode(errors="replace")
        tests = ServerSide(self.server, lambda change: (b"t", struct.pack("<i", change) + source))
        command = Command(
            self.answers, limits.memory_mb, limits.seconds, 512, 6144, kept_kb=limits.output_kb, talks_on_stdio=True
        )
        yield Sides(CommandSide(command, zygote, limits, first=(b"c", compiled)), tests, lifted.claims)

    def _compiled(self, source: str, limits: Limits) -> bytes | ExecutionResult:
        """The answer's classes. Its source is hostile, but a compiler without plugins runs nothing of it."""
        try:
            kind, body = self.server.request(
                b"c", source.encode(errors="replace"), time.monotonic() + limits.compile_wall_seconds
            )
        except LateError:
            return ExecutionResult(
                "compile_error", stderr=f"the compiler took more than {limits.compile_seconds:g} seconds"
            )
        except EndedError:
            return ExecutionResult("compile_error", stderr="the compiler ended on this source")
        return body if kind == b"k" else ExecutionResult("compile_error", 1, "", body.decode(errors="replace"))

    def _tests(self, program: Program, limits: Limits) -> Lifted:
        """The source of the tests that compiles: with its claims lifted, or as it came."""
        lifted, plain = _sources(program.files["declaration"], program.files["entry_point"], program.files["tests"])
        for tests in (lifted, Lifted(plain, 0)):
            kind, words = self.server.request(
                b"p", tests.tests.encode(errors="replace"), time.monotonic() + limits.compile_wall_seconds
            )
            if kind == b"k":
                return tests
        raise ExecutionError(f"the tests do not compile: {words[:500].decode(errors='replace')}")

    def close(self) -> None:
        """End the tests' sandbox."""
        self.server.close()


def runner(toolchain: Toolchain, tests_zygote: ZygoteHandle) -> JavaRunner:
    """What runs a slot's programs."""
    return JavaRunner(toolchain, tests_zygote)


@lru_cache(maxsize=64)
def _sources(declaration: str, entry_point: str, tests: str) -> tuple[Lifted, str]:
    """The tests' source with claims that can be changed, and without."""
    problem, name = asking_class(declaration, entry_point)
    lifted = lift(tests, "java", [name])
    return Lifted(_with_problem(problem, lifted.tests), lifted.claims), _with_problem(problem, tests)


def _with_problem(problem: str, tests: str) -> str:
    imports = "\n".join(_IMPORT.findall(problem) + _IMPORT.findall(tests))
    body = _IMPORT.sub("", tests).replace("public class Main", "class Main", 1)
    return f"{_HEADER}{imports}\n{_IMPORT.sub('', problem)}\n{body}\n"


def asking_class(declaration: str, entry_point: str) -> tuple[str, str]:
    """The problem's class up to its method under test, which asks, and that method's name; the last one's where the data misspells it."""
    pattern = (
        r"^[ \t]*((?:public|private|protected|static|final)\s[\w<>,\[\]?. \t]*?)\s*\b(\w+)\s*\(([^;{}]*)\)([^;{}]*)\{"
    )
    heads = list(re.finditer(pattern, declaration, re.MULTILINE))
    named = [head for head in heads if head.group(2) == entry_point]
    type_names = re.findall(r"\bclass\s+(\w+)", declaration)
    if not heads or not type_names:
        raise ExecutionError(f"Java: no method of a class in the declaration: {declaration[-200:]!r}")
    head = (named or heads)[-1]
    modifiers, name, parameters, _ = head.groups()
    result = re.sub(r"\b(?:public|private|protected|static|final)\b", "", modifiers).strip()
    given = ", ".join(re.findall(r"(\w+)\s*(?:,|$)", _without_generics(parameters)))
    receiver = "null" if re.search(r"\bstatic\b", modifiers) else "this"
    question = f'mft.Tests.ask("{type_names[0]}", "{name}", {receiver}, new Object[] {{{given}}})'
    body = f"{question};" if result == "void" else f"return ({result}) {question};"
    return f"{declaration[: head.end()]}\n{body}\n}}\n}}\n", name


def _without_generics(parameters: str) -> str:
    """`Map<String, Integer> a, int b` -> `Map a, int b`."""
    while (plain := re.sub(r"<[^<>]*>", "", parameters)) != parameters:
        parameters = plain
    return parameters


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Compile the bridge, and archive what an answer's machine loads, which shortens its start."""
    home = str(Path(tools["javac"]).resolve().parent.parent)
    version = output_of(tools["javac"], "-version").strip()

    def build(folder: Path) -> None:
        output_of(tools["javac"], "-proc:none", "-d", str(folder / "classes"), *map(str, _BRIDGE))
        with zipfile.ZipFile(folder / "bridge.jar", "w") as jar:  # an archive is made of jars only
            for path in sorted((folder / "classes").rglob("*.class")):
                jar.write(path, path.relative_to(folder / "classes"))
        archive = f"-XX:ArchiveClassesAtExit={folder}/answer.jsa"
        output_of(tools["java"], *_VM, archive, "-cp", str(folder / "bridge.jar"), "mft.Rehearsal")

    contents = "".join(path.read_text() for path in _BRIDGE)
    cache = cached("java", version + home + contents + " ".join(_VM), build)
    return Toolchain("java", tools, cache, (cache, home, "/etc/java-17-openjdk", "/etc/java-21-openjdk"), version)
