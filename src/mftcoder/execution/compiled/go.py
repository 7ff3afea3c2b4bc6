"""Go: compiler and linker run directly, on packages that are compiled once, instead of `go build`.

The answer and the tests are two programs, each with a main for the problem's signature: the candidate's serves the function, the
judge's has a variable of that type which asks the candidate (bridge/bridge.go). Imports are corrected as in HumanEval-X: unused
ones are removed and missing ones of the standard library added, because both are errors in Go and say nothing about the answer.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from mftcoder.execution.compiled.claims import instrument
from mftcoder.execution.compiled.plan import BRIDGE, Build, Plan, entry_head, listing, shell
from mftcoder.execution.compiled.run import CompiledRunner
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

_ADDED = (
    "bufio bytes container/heap container/list crypto/md5 crypto/sha256 encoding/base64 encoding/hex encoding/json "
    "errors fmt math math/big math/bits math/cmplx math/rand os reflect regexp sort strconv strings sync time unicode "
    "unicode/utf8 testing"
)
"""Packages that an answer may use without importing them."""
_BRIDGE = BRIDGE / "bridge.go"
_TESTIFY = "github.com/stretchr/testify/assert"
_DEBIAN_PATH = "/usr/share/gocode"  # where golang-github-stretchr-testify-dev puts its sources
_IMPORT_BLOCK = re.compile(r"^[ \t]*import\s*\(([^)]*)\)|^[ \t]*import\s+((?:[\w.]+\s+)?\"[^\"]+\")", re.MULTILINE)
_PACKAGE = re.compile(r"^[ \t]*package\s+\w+[^\n]*$", re.MULTILINE)
_NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|`[^`]*`", re.DOTALL)


def plan(program: Program, toolchain: Toolchain) -> Plan:
    """Two programs. The answer is a package of its own, so that it may have a main."""
    sources = program.files
    context, name, signature = split_declaration(sources["declaration"], sources["entry_point"])
    serve = f"func main() {{\n\tvar function func{signature} = answer.{name}\n\tmftbridge.Serve(function)\n}}\n"
    answer = {
        "answer.go": _source("answer", sources["candidate"], ()),
        "main.go": _source("main", serve, ('"answer"', '"mftbridge"')),
    }
    bind = f"\nvar {name} func{signature}\n\nfunc init() {{ mftbridge.Bind(&{name}) }}\n"
    instrumented = instrument(sources["tests"], "go", [name])
    tests, plain = (
        _build({"main.go": _tests(sources["setup"], context + bind, text)}, toolchain)
        for text in (instrumented.tests, sources["tests"])
    )
    return Plan(_build(answer, toolchain), tests, instrumented.claims, plain, address_mb=4096)


def alone(code: str, toolchain: Toolchain) -> Build:
    """Compiles code as a package of its own, with exactly the imports that it uses."""
    script = '"$2" -o program -p answer -complete -pack -importcfg "$1/importcfg" answer.go'
    command = shell(script, toolchain.cache, toolchain.tools["compile"])
    environment = {"GOROOT": toolchain.tools["root"], "GOMAXPROCS": "2", "GOMEMLIMIT": "off"}
    return Build({"answer.go": _source("answer", code, ())}, command, environment)


def linted(code: str, toolchain: Toolchain) -> Build:
    """What vet says about code with its own imports. It checks the types too, and then says `vet: ` before its first error."""
    environment = {"GOROOT": toolchain.tools["root"], "GOMAXPROCS": "2"}
    script = 'cp "$1/vet.cfg" vet.cfg && "$2" vet.cfg'
    return listing(script, {"answer.go": code}, toolchain.cache, toolchain.tools["vet"], environment=environment)


def _build(sources: Mapping[str, str], toolchain: Toolchain) -> Build:
    """Compile the answer's package, if there is one, then main, then link."""
    go = toolchain.tools
    compiled = (
        '"$2" -o answer.a -p answer -complete -pack -importcfg cfg answer.go && ' if "answer.go" in sources else ""
    )
    script = (
        'cp "$1/importcfg" cfg && echo "packagefile answer=answer.a" >> cfg && '
        f'{compiled}"$2" -o main.a -p main -complete -pack -importcfg cfg main.go && "$3" -s -w -o program -importcfg cfg main.a'
    )
    environment = {"GOROOT": go["root"], "GOMAXPROCS": "2", "GOMEMLIMIT": "off"}
    return Build(sources, shell(script, toolchain.cache, go["compile"], go["link"]), environment)


def split_declaration(declaration: str, entry_point: str) -> tuple[str, str, str]:
    """What comes before the entry point, its name, and `(parameters) results`; of the last function if the name is wrong."""
    head = entry_head(r"^func\s+(?P<name>\w+)\s*(\(.*)\{[ \t]*$", declaration, entry_point, "Go: no function")
    return declaration[: head.start()], head[1], head[2].strip()


def _tests(setup: str, context: str, tests: str) -> str:
    names = re.findall(r"^func\s+(Test\w*)\s*\(\s*\w+\s+\*testing\.T\s*\)", tests, re.MULTILINE)
    if not names:
        raise ValueError("no Test function in the tests: nothing would be proved")
    listed = ", ".join(names)
    harness = (
        "\nvar mft_expected, mft_number = mftbridge.Expected, mftbridge.Number\n\nfunc main() {\n\tmftbridge.Judge(func() bool {\n"
        f"\t\tfor _, test := range []func(*testing.T){{{listed}}} {{\n\t\t\tt := new(testing.T)\n\t\t\ttest(t)\n"
        "\t\t\tif t.Failed() {\n\t\t\t\treturn false\n\t\t\t}\n\t\t}\n\t\treturn true\n\t})\n}\n"
    )
    return _source("main", f"{setup}\n{context}\n{tests}{harness}", ('"mftbridge"',))


def _source(package: str, text: str, extra: Iterable[str]) -> str:
    """`text` as a file of `package`, with exactly the imports that it uses."""
    body = _IMPORT_BLOCK.sub("", _PACKAGE.sub("", text))
    code = _NOT_CODE.sub(" ", body)
    imports = [spec for spec in _imports(text) if _is_used(spec, code)]
    known = {_name_of(spec) for spec in imports}
    imports += [
        f'"{path}"' for path in _ADDED.split() if path.rpartition("/")[2] not in known and _is_used(f'"{path}"', code)
    ]
    lines = "".join(f"import {spec}\n" for spec in [*extra, *dict.fromkeys(imports)])
    return f"package {package}\n\n{lines}{body}"


def _imports(text: str) -> list[str]:
    """`name "path"` or `"path"` for each import in the text."""
    found = []
    for block, single in _IMPORT_BLOCK.findall(text):
        found += [line.strip().rstrip(";") for line in (block or single).splitlines() if '"' in line]
    return [re.sub(r"\s*//.*$", "", spec) for spec in found]


def _name_of(spec: str) -> str:
    name, _, path = spec.partition('"')
    return name.strip() or path.rstrip('"').rpartition("/")[2]


def _is_used(spec: str, code: str) -> bool:
    name = _name_of(spec)
    return name in "._" or re.search(rf"(?<![\w.]){re.escape(name)}\s*\.\s*\w", code) is not None


_VET = "vet 1"  # of what vet reads; another one makes the cache new


def _vet_config(lines: Iterable[str]) -> str:
    """What `go vet` hands to its tool: one package of one file, and where the packages are that it may import."""
    files = dict(line.removeprefix("packagefile ").split("=", 1) for line in lines)
    package = {"ID": "answer", "ImportPath": "answer", "Compiler": "gc", "Dir": ".", "GoFiles": ["answer.go"]}
    return json.dumps(
        {**package, "ImportMap": {path: path for path in files}, "PackageFile": files, "VetxOutput": "vetx"}
    )


runner = partial(CompiledRunner, plan, alone, linted)


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Compile what programs may import (the standard library, testify) and list where the packages are."""
    version = output_of(tools["go"], "version").strip()
    root = output_of(tools["go"], "env", "GOROOT").strip()
    tool_folder = output_of(tools["go"], "env", "GOTOOLDIR").strip()

    def build(folder: Path) -> None:
        environment = {
            "GO111MODULE": "off",
            "GOPATH": os.pathsep.join([os.environ.get("GOPATH", ""), _DEBIAN_PATH]).strip(os.pathsep),
            "GOCACHE": str(folder / "cache"),
            "GOFLAGS": "",
            "CGO_ENABLED": "0",
        }
        template = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
        listed = output_of(
            tools["go"], "list", "-deps", "-export", "-f", template, "std", _TESTIFY, environment=environment
        )
        lines = [line for line in listed.splitlines() if line]
        (folder / "importcfg").write_text("".join(line + "\n" for line in lines))
        bridge = ("-p", "mftbridge", "-complete", "-pack", "-importcfg", str(folder / "importcfg"), str(_BRIDGE))
        output_of(f"{tool_folder}/compile", "-o", str(folder / "mftbridge.a"), *bridge)
        lines.append(f"packagefile mftbridge={folder}/mftbridge.a")
        (folder / "importcfg").write_text("".join(line + "\n" for line in lines))
        (folder / "vet.cfg").write_text(_vet_config(lines))

    cache = cached("go", version + root + _BRIDGE.read_text() + _VET, build)
    compiled = {**{name: f"{tool_folder}/{name}" for name in ("compile", "link", "vet")}, "root": root}
    return Toolchain("go", {**tools, **compiled}, cache, (cache, root, tool_folder), version)
