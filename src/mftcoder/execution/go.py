"""Go: the compiler and linker called directly on packages prepared once, instead of `go build`.

The candidate is a package of its own; the tests are another that imports its exported names, so nothing it declares (`true`,
`assert`, `TestMain`) reaches them. Imports are put right as HumanEval-X does: unused ones go, missing ones of the standard
library come, because either is an error in Go and says nothing about the answer.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mftcoder.execution.plan import PROOF_DESCRIPTOR, Plan, Step
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

_STANDARD = [
    "bufio",
    "bytes",
    "container/heap",
    "container/list",
    "crypto/md5",
    "crypto/sha256",
    "encoding/base64",
    "encoding/hex",
    "encoding/json",
    "errors",
    "fmt",
    "math",
    "math/big",
    "math/bits",
    "math/cmplx",
    "math/rand",
    "os",
    "reflect",
    "regexp",
    "sort",
    "strconv",
    "strings",
    "sync",
    "time",
    "unicode",
    "unicode/utf8",
    "testing",
]
_TESTIFY = "github.com/stretchr/testify/assert"
_DEBIAN_PATH = "/usr/share/gocode"  # where golang-github-stretchr-testify-dev puts its sources
_IMPORT_BLOCK = re.compile(r"^[ \t]*import\s*\(([^)]*)\)|^[ \t]*import\s+((?:[\w.]+\s+)?\"[^\"]+\")", re.MULTILINE)
_PACKAGE = re.compile(r"^[ \t]*package\s+\w+[^\n]*$", re.MULTILINE)
_NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|`[^`]*`", re.DOTALL)


def plan(program: Program, key: str, toolchain: Toolchain) -> Plan:
    """Compile the candidate's package, then the tests', then link."""
    files, go = program.files, toolchain.tools
    packages = ("-importcfg", f"{toolchain.cache}/importcfg")
    compile_candidate = (
        go["compile"],
        "-o",
        "candidate.a",
        "-p",
        "candidate",
        "-complete",
        "-pack",
        *packages,
        "candidate.go",
    )
    build = (
        'cat "$1/importcfg" > cfg && echo "packagefile candidate=candidate.a" >> cfg'
        ' && "$2" -o tests.a -p main -complete -pack -importcfg cfg tests.go'
        ' && "$3" -s -w -o program -importcfg cfg tests.a'
    )
    steps = (
        Step({"candidate.go": _source("candidate", files["candidate"], ())}, compile_candidate),
        Step(
            {"tests.go": _tests(files["setup"], files["tests"], key)},
            ("/bin/sh", "-c", build, "sh", toolchain.cache, go["compile"], go["link"]),
            keep=("candidate.a",),
        ),
    )
    environment = {"GOROOT": go["root"], "TMPDIR": ".", "GOMAXPROCS": "2", "GOMEMLIMIT": "off"}
    return Plan(steps, ("./program",), ("program",), key, environment=environment, address_mb=4096)


def _tests(setup: str, tests: str, key: str) -> str:
    names = re.findall(r"^func\s+(Test\w*)\s*\(\s*\w+\s+\*testing\.T\s*\)", tests, re.MULTILINE)
    if not names:
        raise ValueError("no Test function in the tests: nothing would be proved")
    calls = "".join(f"\tmftRun({name})\n" for name in names)
    harness = (
        "\nfunc mftRun(test func(*testing.T)) {\n\tt := new(testing.T)\n\ttest(t)\n\tif t.Failed() {\n\t\tmftOs.Exit(1)\n\t}\n}\n"
        f'\nfunc main() {{\n{calls}\tmftOs.NewFile({PROOF_DESCRIPTOR}, "proof").WriteString("{key}")\n}}\n'
    )
    return _source("main", setup + "\n" + tests + harness, ('. "candidate"', 'mftOs "os"'))


def _source(package: str, text: str, extra: Iterable[str]) -> str:
    """`text` as a file of `package`, with the imports that it uses."""
    body = _IMPORT_BLOCK.sub("", _PACKAGE.sub("", text))
    code = _NOT_CODE.sub(" ", body)
    imports = [spec for spec in _imports(text) if _is_used(spec, code)]
    known = {_name_of(spec) for spec in imports}
    imports += [
        f'"{path}"' for path in _STANDARD if path.rpartition("/")[2] not in known and _is_used(f'"{path}"', code)
    ]
    lines = "".join(f"import {spec}\n" for spec in [*extra, *dict.fromkeys(imports)])
    return f"package {package}\n\n{lines}{body}"


def _imports(text: str) -> list[str]:
    """`name "path"` or `"path"` for each import of the text."""
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


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Compile the packages that programs may import, and list where they are."""
    version = output_of(tools["go"], "version").strip()
    root = output_of(tools["go"], "env", "GOROOT").strip()
    tool_folder = output_of(tools["go"], "env", "GOTOOLDIR").strip()

    def build(folder: Path) -> None:
        environment = {
            "GO111MODULE": "off",
            "GOPATH": os.pathsep.join([os.environ.get("GOPATH", ""), _DEBIAN_PATH]).strip(os.pathsep),
            "GOCACHE": str(folder / "cache"),
            "GOFLAGS": "",
        }
        wanted = (*_STANDARD, _TESTIFY)
        template = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
        listed = output_of(tools["go"], "list", "-deps", "-export", "-f", template, *wanted, environment=environment)
        (folder / "importcfg").write_text("".join(line + "\n" for line in listed.splitlines() if line))

    cache = cached("go", version + root + " ".join(_STANDARD), build)
    compiled = {"compile": f"{tool_folder}/compile", "link": f"{tool_folder}/link", "root": root}
    return Toolchain("go", {**tools, **compiled}, cache, (cache, root, tool_folder), version)
