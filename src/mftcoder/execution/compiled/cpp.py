"""C++: g++ -std=c++11 without optimization, as the reference harness compiles.

The answer and the tests are two programs. Both are compiled from the problem's own signature: in the answer's a wrapper with that
signature calls the function, in the tests' a function with that signature asks the other process (bridge/bridge.h). What the tests
use beside it, types and helpers that the problem declares, is compiled from the problem's text and not from the answer's.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.compiled.claims import lift
from mftcoder.execution.compiled.plan import Build, Plan, shell
from mftcoder.execution.compiled.run import CompiledRunner
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, fast_linker, output_of

# The import header of the reference harness, precompiled with the bridge.
HEADER = (
    "".join(
        f"#include<{name}>\n"
        for name in [
            "stdlib.h",
            "algorithm",
            "cmath",
            "math.h",
            "numeric",
            "stdio.h",
            "vector",
            "set",
            "map",
            "queue",
            "stack",
            "list",
            "deque",
        ]
    )
    + "#if __has_include(<boost/any.hpp>)\n#include<boost/any.hpp>\n#endif\n"
    + "".join(
        f"#include<{name}>\n"
        for name in ["string", "climits", "cstring", "iostream", "sstream", "fstream", "stdexcept"]
    )
    + "using namespace std;\n"
)
FLAGS = ("-std=c++11", "-w", "-Wno-narrowing")
PRECOMPILED = "mft_header.h"
_BRIDGE = Path(str(files("mftcoder.execution.compiled"))) / "bridge"

_ASSERT_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:assert\.h|cassert)>.*$", re.MULTILINE)
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)")
_RETURNS = re.compile(r"\breturn\b[^;]*;\s*\}\s*$")
_ASSERT = (
    "#include <assert.h>\n#undef assert\n"
    "#define assert(...) ((__VA_ARGS__) ? (void)0 : mft::failed(__LINE__, #__VA_ARGS__))\n"
)


def runner(toolchain: Toolchain, tests_zygote: ZygoteHandle) -> CompiledRunner:
    """What runs a slot's programs."""
    return CompiledRunner(plan, toolchain, tests_zygote)


def plan(program: Program, toolchain: Toolchain) -> Plan:
    """Two programs of one translation unit each."""
    sources = program.files
    signature = Signature.of(sources["declaration"], sources["entry_point"])
    lifted = lift(sources["tests"], "cpp", [signature.name])
    answer = signature.answer(sources["candidate"])
    return Plan(
        _build("answer.cpp", answer, toolchain),
        _build("tests.cpp", signature.tests(lifted.tests), toolchain),
        lifted.claims,
        _build("tests.cpp", signature.tests(sources["tests"]), toolchain),
    )


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
    """A function's declaration taken apart: what stands before it, its type, its name, its parameters."""

    def __init__(self, context: str, result: str, name: str, parameters: str):
        self.context, self.result, self.name, self.parameters = context, result, name, parameters

    @classmethod
    def of(cls, declaration: str, entry_point: str) -> "Signature":
        """The entry point's signature; the last function's where data and declaration disagree about its name."""
        heads = list(
            re.finditer(r"^([A-Za-z_][\w:<>,*& ]*?[\s*&>])(\w+)\s*\(([^{};]*)\)\s*\{", declaration, re.MULTILINE)
        )
        named = [head for head in heads if head.group(2) == entry_point]
        if not heads:
            raise ExecutionError(f"C++: no function in the declaration: {declaration[-200:]!r}")
        head = (named or heads)[-1]
        return cls(declaration[: head.start()], head.group(1).strip(), head.group(2), head.group(3))

    @property
    def arguments(self) -> str:
        """The parameters' names."""
        return ", ".join(parameter_names(self.parameters))

    def answer(self, candidate: str) -> str:
        """The answer's program. A wrapper has the problem's signature, so that an answer may vary its own; a main of its own is left alone."""
        return (
            f'#define main mft_main_of_the_answer\n#line 1 "answer"\n{candidate}\n#line 1 "wrapper"\n#undef main\n'
            f"{self.result} mft_answer({self.parameters}) {{ return {self.name}({self.arguments}); }}\n"
            "signed main() { mft::serve(mft::Function<decltype(mft_answer)>::answer<mft_answer>); }\n"
        )

    def tests(self, tests: str) -> str:
        """The tests' program. A function of the C library that has the entry point's name must not be called in its place."""
        kind = "int" if _RETURNS.search(tests) else "void"  # only a main may end without saying what it returns
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
"""Names of problems that `using namespace std` and the header above give to a function with a better match for a test's arguments."""


def parameter_names(parameters: str) -> list[str]:
    """`vector<int> a, map<char, int>& b=x` -> [a, b]."""
    depth, parts = 0, [""]
    for character in parameters:
        depth += (character in "<([{") - (character in ">)]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [re.findall(r"\w+", part.split("=")[0])[-1] for part in parts if part.strip() and part.strip() != "void"]


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Precompile the header, compile the bridge."""
    version = output_of(tools["g++"], "--version").splitlines()[0]
    bridge = {name: (_BRIDGE / name).read_text() for name in ("bridge.h", "bridge.cpp")}

    def build(folder: Path) -> None:
        for name, text in bridge.items():
            (folder / name).write_text(text)
        header = folder / PRECOMPILED
        header.write_text(f'{HEADER}#include "bridge.h"\n')
        output_of(tools["g++"], *FLAGS, "-x", "c++-header", str(header), "-o", f"{header}.gch")
        output_of(tools["g++"], *FLAGS, "-O1", "-c", str(folder / "bridge.cpp"), "-o", str(folder / "bridge.o"))

    cache = cached("cpp", HEADER + "".join(bridge.values()) + " ".join(FLAGS) + version, build)
    return Toolchain("cpp", tools, cache, (cache,), version)
