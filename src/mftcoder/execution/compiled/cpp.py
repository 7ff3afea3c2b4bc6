"""C++: g++ -std=c++11 without optimization, as the reference harness compiles.

The answer and the tests are two programs. Both contain the problem's signature: in the candidate, a wrapper with that signature
calls the answer; in the judge, a function with that signature asks the candidate (bridge/bridge.h). Other types and helpers that
the tests use come from the problem's text, not from the answer.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mftcoder.execution.compiled.claims import instrument
from mftcoder.execution.compiled.plan import BRIDGE, Build, Plan, entry_head, listing, shell, split_parameters
from mftcoder.execution.compiled.run import CompiledRunner
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, fast_linker, output_of

# The import header of the reference harness, precompiled with the bridge.
_FIRST = "stdlib.h algorithm cmath math.h numeric stdio.h vector set map queue stack list deque"
_LAST = "string climits cstring iostream sstream fstream stdexcept"
HEADER = (
    "".join(f"#include<{name}>\n" for name in _FIRST.split())
    + "#if __has_include(<boost/any.hpp>)\n#include<boost/any.hpp>\n#endif\n"
    + "".join(f"#include<{name}>\n" for name in _LAST.split())
    + "using namespace std;\n"
)
FLAGS = ("-std=c++11", "-w", "-Wno-narrowing")
PRECOMPILED = "mft_header.h"

_ASSERT_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:assert\.h|cassert)>.*$", re.MULTILINE)
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)")
_RETURNS = re.compile(r"\breturn\b[^;]*;\s*\}\s*$")
_ASSERT = (
    "#include <assert.h>\n#undef assert\n"
    "#define assert(...) ((__VA_ARGS__) ? (void)0 : mft::failed(__LINE__, #__VA_ARGS__))\n"
)


def plan(program: Program, toolchain: Toolchain) -> Plan:
    """Two programs of one translation unit each."""
    sources = program.files
    signature = Signature.of(sources["declaration"], sources["entry_point"])
    instrumented = instrument(sources["tests"], "cpp", [signature.name])
    answer = signature.answer(sources["candidate"])
    return Plan(
        _build("answer.cpp", answer, toolchain),
        _build("tests.cpp", signature.tests(instrumented.tests), toolchain),
        instrumented.claims,
        _build("tests.cpp", signature.tests(sources["tests"]), toolchain),
    )


def alone(code: str, toolchain: Toolchain) -> Build:
    """Checks code as a file of its own: behind the usual headers as C++11, or else as it stands as C++20."""
    known = f'"$@" -I {toolchain.cache} -include {PRECOMPILED} {" ".join(FLAGS)} 2>/dev/null'
    script = f'{{ {known} || "$@" -std=c++20 -w; }} && echo done > program'
    command = shell(script, toolchain.tools["g++"], "-fsyntax-only", "answer.cpp")
    return Build({"answer.cpp": code}, command, {"TMPDIR": "."})


def linted(code: str, toolchain: Toolchain) -> Build:
    """What g++ says about code with its own includes, all warnings on."""
    flags = ("-std=c++11", "-Wall", "-Wextra", "-fno-diagnostics-show-caret", "-fdiagnostics-color=never")
    command = (toolchain.tools["g++"], *flags, "-c", "-o", "object", "answer.cpp")
    return listing('"$@"', {"answer.cpp": code}, *command, environment={"TMPDIR": ".", "LC_ALL": "C"})


def _build(name: str, source: str, toolchain: Toolchain) -> Build:
    cache = toolchain.cache
    libraries = ("-lcrypto", "-lssl") if "openssl/" in source else ()
    command = shell(
        '"$@" -o program',
        *(toolchain.tools["g++"], *FLAGS, "-I", cache, "-include", PRECOMPILED),
        *(name, f"{cache}/bridge.o", *fast_linker(), *libraries),
    )
    return Build({name: source}, command, {"TMPDIR": "."})


class Signature:
    """A function's declaration: what comes before it, its result type, its name, its parameters."""

    def __init__(self, context: str, result: str, name: str, parameters: str):
        self.context, self.result, self.name, self.parameters = context, result, name, parameters

    @classmethod
    def of(cls, declaration: str, entry_point: str) -> "Signature":
        """The entry point's signature; that of the last function if the data names another entry point."""
        pattern = r"^([A-Za-z_][\w:<>,*& ]*?[\s*&>])(?P<name>\w+)\s*\(([^{};]*)\)\s*\{"
        head = entry_head(pattern, declaration, entry_point, "C++: no function")
        return cls(declaration[: head.start()], head[1].strip(), head[2], head[3])

    @property
    def arguments(self) -> str:
        """`vector<int> a, map<char, int>& b=x` -> `a, b`."""
        parts = [part for part in split_parameters(self.parameters) if part != "void"]
        return ", ".join(re.findall(r"\w+", part.split("=")[0])[-1] for part in parts)

    def answer(self, candidate: str) -> str:
        """The candidate's source. The wrapper has the problem's signature, so the answer's own may differ; its main is renamed."""
        return (
            f'#define main mft_main_of_the_answer\n#line 1 "answer"\n{candidate}\n#line 1 "wrapper"\n#undef main\n'
            f"{self.result} mft_answer({self.parameters}) {{ return {self.name}({self.arguments}); }}\n"
            "signed main() { mft::serve(mft::Function<decltype(mft_answer)>::answer<mft_answer>); }\n"
        )

    def tests(self, tests: str) -> str:
        """The judge's source. An entry point with the name of a library function is renamed, so that tests do not call that one."""
        kind = "int" if _RETURNS.search(tests) else "void"  # only main may omit its return statement
        body = _MAIN.sub(f"static {kind} mft_tests()", _ASSERT_INCLUDE.sub("", tests), count=1)
        name = self.name
        if name in _LIBRARY_FUNCTIONS:
            name = f"mft_{name}"
            body = re.sub(rf"\b{self.name}(?=\s*\()", name, body)
        return (
            f"{self.context}\n{self.result} mft_question({self.parameters});\n"
            f"{self.result} {name}({self.parameters}) {{ return mft::Function<decltype(mft_question)>::ask({self.arguments}); }}\n"
            f"#undef NDEBUG\n{_ASSERT}{body}\n"
            "int main(int argc, char** argv) { return mft::judge(mft_tests, argc, argv); }\n"
        )


_LIBRARY_FUNCTIONS = frozenset({"strlen"})
"""Entry points that are also library functions, which match a test's arguments better (`using namespace std`)."""


runner = partial(CompiledRunner, plan, alone, linted)


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Precompile the header and compile the bridge."""
    version = output_of(tools["g++"], "--version").splitlines()[0]
    bridge = {name: (BRIDGE / name).read_text() for name in ("bridge.h", "bridge.cpp")}

    def build(folder: Path) -> None:
        for name, text in bridge.items():
            (folder / name).write_text(text)
        header = folder / PRECOMPILED
        header.write_text(f'{HEADER}#include "bridge.h"\n')
        output_of(tools["g++"], *FLAGS, "-x", "c++-header", str(header), "-o", f"{header}.gch")
        output_of(tools["g++"], *FLAGS, "-O1", "-c", str(folder / "bridge.cpp"), "-o", str(folder / "bridge.o"))

    cache = cached("cpp", HEADER + "".join(bridge.values()) + " ".join(FLAGS) + version, build)
    return Toolchain("cpp", tools, cache, (cache,), version)
