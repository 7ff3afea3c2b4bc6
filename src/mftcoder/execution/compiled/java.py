"""Java: one warm virtual machine compiles and runs the tests, a new one holds the answer.

The tests are compiled with the problem's class, whose method under test asks the candidate (bridge/mft/Tests.java). The answer's
classes are loaded in the candidate's process only (bridge/mft/Answer.java). Helpers that the tests use come from the problem's text,
not from the answer.
"""

import re
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.compiled.claims import Instrumented, instrument
from mftcoder.execution.compiled.judging import Sides
from mftcoder.execution.compiled.plan import BRIDGE, MEMORY_MB, entry_head, listing
from mftcoder.execution.compiled.relay import EndedError, LateError
from mftcoder.execution.compiled.run import Command, CommandSide, Server, ServerSide, warnings_of
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

# For a fast start: one compiler tier and the serial collector. The others do not pay off in short programs.
_VM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-XX:ActiveProcessorCount=2")
_HEADER = "import java.util.*;\nimport java.lang.*;\nimport java.util.stream.*;\nimport java.math.*;\nimport java.security.*;\n"
_IMPORT = re.compile(r"^[ \t]*import\s+(?:static\s+)?[\w.*]+;", re.MULTILINE)
_TYPE = re.compile(r"^[ \t]*(?:[\w@]+[ \t]+)*(?:class|interface|enum|record)\s+\w", re.MULTILINE)
_PUBLIC = re.compile(r"^public[ \t]+((?:[a-z]+[ \t]+)*(?:class|interface|enum|record)\b)", re.MULTILINE)
_BRIDGE = sorted((BRIDGE / "mft").glob("*.java"))
_SERVER_MB = 1024
_OVERHEAD_MB, _ADDRESS_MB = 512, 6144  # of the virtual machine
_UNLIMITED = 1e6  # seconds


class JavaRunner:
    """Runs a slot's programs. Keeps the virtual machine of the tests, so that it is warm."""

    def __init__(self, toolchain: Toolchain, tests_zygote: ZygoteHandle):
        self.javac = toolchain.tools["javac"]
        java = (toolchain.tools["java"], *_VM, f"-Xmx{MEMORY_MB}m")
        classes = ("-cp", f"{toolchain.cache}/bridge.jar")
        self.answers = (
            *java,
            f"-XX:SharedArchiveFile={toolchain.cache}/answer.jsa",
            "-Djava.io.tmpdir=.",
            *classes,
            "mft.Answer",
        )
        self.server = Server(_command((*java, *classes, "mft.Tests"), _SERVER_MB, _UNLIMITED), tests_zygote)

    @contextmanager
    def sides(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> Iterator[Sides | ExecutionResult]:
        """Both sides, or the compile error of the answer. Tests compile first: their errors are not the answer's failure."""
        chosen = self._tests(program, limits)
        compiled = self._compiled(program.files["candidate"], limits)
        if isinstance(compiled, ExecutionResult):
            yield compiled
            return
        source = chosen.tests.encode(errors="replace")
        judge = ServerSide(self.server, lambda change: (b"t", struct.pack("<i", change) + source))
        command = _command(self.answers, limits.memory_mb, limits.seconds, limits.output_kb)
        yield Sides(CommandSide(command, zygote, limits, first=(b"c", compiled)), judge, chosen.claims)

    def compile(self, code: str, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """Whether the code compiles as a file of its own; methods without a class get one. It does not run."""
        compiled = self._compiled(_whole(code), limits)
        return compiled if isinstance(compiled, ExecutionResult) else ExecutionResult("passed")

    def warnings(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """What javac says about the code as it stands, all warnings on. A public class must have the file's name."""
        name = program.files["warnings"]
        machine = ("-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-J-Xmx512m", "-J-Duser.language=en")
        flags = (*machine, "-proc:none", "-Xlint:all", "-d", "classes")
        listed = listing('"$@"', {name: program.files["candidate"]}, self.javac, *flags, name)
        return warnings_of(listed, limits, zygote)

    def _compiled(self, source: str, limits: Limits) -> bytes | ExecutionResult:
        """The answer's classes. Compiling hostile source in the judge is safe: a compiler without plugins runs none of it."""
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

    def _tests(self, program: Program, limits: Limits) -> Instrumented:
        """The tests with instrumentation, or without if only those compile."""
        instrumented, plain = _sources(
            program.files["declaration"], program.files["entry_point"], program.files["tests"]
        )
        for tests in (instrumented, Instrumented(plain, 0)):
            kind, message = self.server.request(
                b"p", tests.tests.encode(errors="replace"), time.monotonic() + limits.compile_wall_seconds
            )
            if kind == b"k":
                return tests
        raise ExecutionError(f"the tests do not compile: {message[:500].decode(errors='replace')}")

    def close(self) -> None:
        self.server.close()


def _whole(code: str) -> str:
    """Code as a file of its own. A public type would need a file of its own name, so it is not public."""
    if _TYPE.search(code):
        return _PUBLIC.sub(r"\1", code)
    imports = "\n".join(_IMPORT.findall(code))
    return f"{_HEADER}{imports}\nclass Answer {{\n{_IMPORT.sub('', code)}\n}}\n"


def _command(arguments: Sequence[str], memory_mb: int, seconds: float, kept_kb: int = 0) -> Command:
    return Command(arguments, memory_mb, seconds, _OVERHEAD_MB, _ADDRESS_MB, kept_kb, frames_on_stdio=True)


runner = JavaRunner


@lru_cache(maxsize=64)
def _sources(declaration: str, entry_point: str, tests: str) -> tuple[Instrumented, str]:
    """The judge's source with instrumentation, and without."""
    problem, name = asking_class(declaration, entry_point)
    found = instrument(tests, "java", [name])
    return Instrumented(_with_problem(problem, found.tests), found.claims), _with_problem(problem, tests)


def _with_problem(problem: str, tests: str) -> str:
    imports = "\n".join(_IMPORT.findall(problem) + _IMPORT.findall(tests))
    body = _IMPORT.sub("", tests).replace("public class Main", "class Main", 1)
    return f"{_HEADER}{imports}\n{_IMPORT.sub('', problem)}\n{body}\n"


def asking_class(declaration: str, entry_point: str) -> tuple[str, str]:
    """The problem's class with a method under test that asks the candidate, and that method's name.

    It is the entry point, or the last method if the data names another one.
    """
    modifier = r"(?:public|private|protected|static|final)"
    pattern = rf"^[ \t]*({modifier}\s[\w<>,\[\]?. \t]*?)\s*\b(?P<name>\w+)\s*\(([^;{{}}]*)\)([^;{{}}]*)\{{"
    type_names = re.findall(r"\bclass\s+(\w+)", declaration)
    head = entry_head(pattern if type_names else r"(?!)", declaration, entry_point, "Java: no method of a class")
    modifiers, name, parameters, _ = head.groups()
    result = re.sub(rf"\b{modifier}\b", "", modifiers).strip()
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
    """Compile the bridge, and archive the classes that a candidate loads, which shortens its start."""
    home = str(Path(tools["javac"]).resolve().parent.parent)
    version = output_of(tools["javac"], "-version").strip()

    def build(folder: Path) -> None:
        output_of(tools["javac"], "-proc:none", "-d", str(folder / "classes"), *map(str, _BRIDGE))
        with zipfile.ZipFile(folder / "bridge.jar", "w") as jar:  # class data sharing needs a jar
            for path in sorted((folder / "classes").rglob("*.class")):
                jar.write(path, path.relative_to(folder / "classes"))
        archive = f"-XX:ArchiveClassesAtExit={folder}/answer.jsa"
        output_of(tools["java"], *_VM, archive, "-cp", str(folder / "bridge.jar"), "mft.Rehearsal")

    contents = "".join(path.read_text() for path in _BRIDGE)
    cache = cached("java", version + home + contents + " ".join(_VM), build)
    return Toolchain("java", tools, cache, (cache, home, "/etc/java-17-openjdk", "/etc/java-21-openjdk"), version)
