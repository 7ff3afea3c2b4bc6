"""C++: g++ -std=c++11 without optimisation, as the reference harness compiles.

The candidate and the tests are two translation units. The candidate's exports one function, a wrapper with the problem's own
signature, and every other symbol of it is made local; so neither a macro nor an overload nor a `memcmp` of its own reaches the
tests. `assert` in the tests is a trap instruction and the key is written by a bare system call: nothing there can be replaced.
"""

import platform
import re
from collections.abc import Mapping
from pathlib import Path

from mftcoder.execution.plan import PROOF_DESCRIPTOR, Plan, Step
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, fast_linker, output_of

# The import header of the reference harness, precompiled.
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
FLAGS = ("-std=c++11", "-w", "-fno-gnu-unique")  # unique symbols could not be made local
PRECOMPILED = "mft_header.h"

_SYSTEM_WRITE = {
    "x86_64": 'asm volatile("syscall" : "=a"(r) : "a"(1L), "D"({fd}L), "S"(k), "d"(n) : "rcx", "r11", "memory");',
    "aarch64": (
        'register long x8 asm("x8") = 64, x0 asm("x0") = {fd}; register const char* x1 asm("x1") = k; '
        'register unsigned long x2 asm("x2") = n; asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory"); r = x0;'
    ),
}
_ASSERT_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:assert\.h|cassert)>.*$", re.MULTILINE)
_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)")
_ASSERT = (
    "#undef assert\n"
    '#define assert(...) ((__VA_ARGS__) ? (void)0 : (fprintf(stderr, "line %d: %s\\n", __LINE__, #__VA_ARGS__), __builtin_trap()))\n'
)


def plan(program: Program, key: str, toolchain: Toolchain) -> Plan:
    """Compile the candidate alone, then the tests, then link."""
    files = program.files
    gxx, include = toolchain.tools["g++"], ("-I", toolchain.cache, "-include", PRECOMPILED)
    signature = Signature.of(files["declaration"], files["entry_point"])
    candidate = files["candidate"] + (signature.export() if signature else "")
    hide = (
        'g="$1"; shift; "$g" "$@" -c candidate.cpp -o c.o && ld -r --force-group-allocation c.o -o l.o'
        " && objcopy --keep-global-symbol=mft_entry l.o candidate.o"
    )
    steps: tuple[Step, ...]
    tests = _tests(files["tests"], signature, key)
    if signature is None:  # tests that use more of the candidate than one function are compiled behind it
        steps = (
            Step(
                {"all.cpp": candidate + tests},
                (gxx, *FLAGS, *include, "all.cpp", "-o", "program", *_libraries(candidate)),
            ),
        )
    else:
        steps = (
            Step({"candidate.cpp": candidate}, ("/bin/sh", "-c", hide, "sh", gxx, *FLAGS, *include)),
            Step(
                {"tests.cpp": tests},
                (
                    gxx,
                    *FLAGS,
                    *include,
                    "tests.cpp",
                    "candidate.o",
                    "-o",
                    "program",
                    *fast_linker(),
                    *_libraries(candidate),
                ),
                keep=("candidate.o",),
            ),
        )
    return Plan(steps, ("./program",), ("program",), key, environment={"TMPDIR": "."})


def _libraries(candidate: str) -> tuple[str, ...]:
    return ("-lcrypto", "-lssl") if "openssl/" in candidate else ()


def _tests(tests: str, signature: "Signature | None", key: str) -> str:
    body = _ASSERT_INCLUDE.sub("", tests)
    body = _MAIN.sub("static int mft_tests()", body, count=1)
    write = _SYSTEM_WRITE[platform.machine()].format(fd=PROOF_DESCRIPTOR)
    main = (
        "\nint main() {\n  mft_tests();\n"
        f'  const char* k = "{key}"; unsigned long n = {len(key)}; long r;\n  {write}\n  return r == (long)n ? 0 : 1;\n}}\n'
    )
    before = signature.context + signature.declare() if signature else ""
    return f"{before}\n#include <assert.h>\n#undef NDEBUG\n{_ASSERT}{body}{main}"


class Signature:
    """A function's declaration taken apart: what stands before it, its type, its name, its parameters."""

    def __init__(self, context: str, result: str, name: str, parameters: str):
        self.context, self.result, self.name, self.parameters = context, result, name, parameters

    @classmethod
    def of(cls, declaration: str, entry_point: str) -> "Signature | None":
        """The entry point's signature; the last function's where data and declaration disagree about its name."""
        heads = list(
            re.finditer(r"^([A-Za-z_][\w:<>,*& ]*?[\s*&>])(\w+)\s*\(([^{};]*)\)\s*\{", declaration, re.MULTILINE)
        )
        named = [head for head in heads if head.group(2) == entry_point]
        if not heads:
            return None
        head = (named or heads)[-1]
        return cls(declaration[: head.start()], head.group(1).strip(), head.group(2), head.group(3))

    def declare(self) -> str:
        """For the tests: the function, under the symbol that the wrapper exports."""
        return f'{self.result} {self.name}({self.parameters}) asm("mft_entry");\n'

    def export(self) -> str:
        """For the candidate: a wrapper with the problem's signature, so that an answer may vary its own."""
        arguments = ", ".join(parameter_names(self.parameters))
        return (
            f'\n#line 1 "wrapper"\n{self.result} mft_wrapper({self.parameters}) asm("mft_entry");\n'
            f"{self.result} mft_wrapper({self.parameters}) {{ return {self.name}({arguments}); }}\n"
        )


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
    """Precompile the header."""
    version = output_of(tools["g++"], "--version").splitlines()[0]

    def build(folder: Path) -> None:
        header = folder / PRECOMPILED
        header.write_text(HEADER)
        output_of(tools["g++"], *FLAGS, "-x", "c++-header", str(header), "-o", f"{header}.gch")

    cache = cached("cpp", HEADER + " ".join(FLAGS) + version, build)
    return Toolchain("cpp", tools, cache, (cache,), version)
