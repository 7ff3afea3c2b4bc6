"""Rust: rustc, edition 2021, without optimization, with the crates that the benchmarks' programs use (rand, regex, md5).

The answer and the tests are two programs. Each has a module for the problem's signature: the candidate's calls the function and
sends its result, the judge's has a function with that signature which asks the candidate (bridge/bridge.rs). Other types and
helpers that the tests use come from the problem's text, not from the answer.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.compiled.claims import instrument
from mftcoder.execution.compiled.plan import BRIDGE, Build, Plan, entry_head, listing, shell, split_parameters
from mftcoder.execution.compiled.run import CompiledRunner
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, fast_linker, output_of

_FLAGS = ("--edition", "2021", "--cap-lints", "allow", "-C", "debuginfo=0", "-C", "codegen-units=1")
_REGISTRY = "/usr/share/cargo/registry"  # where Debian's librust-*-dev packages put their sources
_BRIDGE = BRIDGE / "bridge.rs"
_RAND = BRIDGE / "rand.rs"
_MANIFEST = BRIDGE / "crates.toml"
_TEST = re.compile(r"#\[test\](?:\s|//[^\n]*\n)*(?:pub\s+)?fn\s+(\w+)")
_INNER = re.compile(  # attributes and comments of the whole crate
    r"^[ \t]*(?:#!\[[^\]]*\]|//![^\n]*|/\*!.*?\*/)", re.MULTILINE | re.DOTALL
)


def plan(program: Program, toolchain: Toolchain) -> Plan:
    """Two crates, each a program."""
    sources = program.files
    head = Head.of(sources["declaration"], sources["entry_point"])
    types = [Enum.of(text) for text in re.findall(_ENUM, sources.get("types", ""))]
    instrumented = instrument(sources["tests"], "rust", [head.name])
    plain = _tests(sources["tests"], head, types)
    return Plan(
        _build("answer.rs", _answer(sources["candidate"], head, types, sources["tests"]), toolchain),
        _build("tests.rs", _tests(instrumented.tests, head, types), toolchain),
        instrumented.claims,
        _build("tests.rs", plain, toolchain),
    )


def alone(code: str, toolchain: Toolchain) -> Build:
    """Checks code as a crate of its own."""
    return _build("answer.rs", code, toolchain, ("--crate-type", "lib", "--emit", "metadata"))


def linted(code: str, toolchain: Toolchain) -> Build:
    """What clippy says about code as a library, where clippy is, else what rustc says. Unused functions are no fault of one file."""
    tool = toolchain.tools.get("clippy-driver", toolchain.tools["rustc"])
    flags = "--edition 2021 --crate-type lib --emit metadata --error-format short -A dead_code"
    command = (tool, *flags.split(), *_crates(toolchain), "-o", "metadata", "answer.rs")
    return listing('"$@"', {"answer.rs": code}, *command)


def _crates(toolchain: Toolchain) -> list[str]:
    listed = Path(toolchain.cache, "externs").read_text().split()
    found = [argument for extern in listed for argument in ("--extern", extern)]
    return [*found, "-L", f"dependency={toolchain.cache}/deps"]


def _build(name: str, source: str, toolchain: Toolchain, kind: Sequence[str] = ()) -> Build:
    linker = [part for flag in ("-s", *fast_linker()) for part in ("-C", f"link-arg={flag}")]
    command = shell('"$@" -o program', toolchain.tools["rustc"], *_FLAGS, *kind, *_crates(toolchain), *linker, name)
    return Build({name: source}, command)


def _answer(candidate: str, head: "Head", types: Sequence["Enum"], tests: str) -> str:
    """The candidate's crate. The answer's main is not called; attributes of the whole crate are moved to the top."""
    inner = "\n".join(line.strip() for line in _INNER.findall(candidate) if line.strip().startswith("#!"))
    body = _INNER.sub("", candidate)
    bindings = "".join(f"        let mut p{n}: {type_} = Take::take(from);\n" for n, type_ in enumerate(head.types))
    arguments = ", ".join(f"&mut *p{n}" if head.is_changed(n) else f"p{n}" for n in range(len(head.types)))
    back = "".join(f"        Wire::put(&*p{n}, out);\n" for n in range(len(head.types)) if head.is_changed(n))
    return (
        f"#![no_main]\n{inner}\n{body}\n"
        f"mod mft_answer {{\n    {head.uses}\n    use mft_bridge::{{In, Take, Wire}};\n    use super::{{{head.name} as mft_function}};\n"
        f"{''.join(type_.put(tests) for type_ in types)}"
        f"    fn answer(from: &mut In, out: &mut std::vec::Vec<u8>) {{\n{bindings}"
        f"        let result: {head.static_result} = mft_function({arguments});\n        Wire::put(&result, out);\n{back}    }}\n"
        '    #[export_name = "main"] pub extern "C" fn start(_: i32, _: *const *const u8) -> i32 { mft_bridge::serve(answer); 0 }\n}\n'
    )


def _tests(tests: str, head: "Head", types: Sequence["Enum"]) -> str:
    """The judge's crate: the tests as plain functions, and a function under test that asks the candidate."""
    body = re.sub(r"#\[cfg\(test\)\]", "", tests)
    names = _TEST.findall(body)
    if not names:
        raise ValueError("no #[test] function in the tests: nothing would be proved")
    body = _TEST.sub(r"pub fn \1", body)
    module = re.search(r"\bmod\s+(\w+)", body)
    listed = ", ".join(f"{module.group(1) if module else 'self'}::{name}" for name in names)
    sent = "".join(f" Wire::put(&{name}, &mut question);" for name in head.names)
    back = "".join(f" *{name} = Take::take(&mut from);" for n, name in enumerate(head.names) if head.is_changed(n))
    return (
        f"{head.context}\n{''.join(type_.definition + type_.take() for type_ in types)}"
        "#[allow(unused_imports)] use mft_bridge::{mft_expected, mft_holds};\n"
        f"fn {head.name}{head.generics}({head.parameters}) {head.arrow} {{\n"
        f"    use mft_bridge::{{In, Take, Wire}};\n    let mut question = Vec::new();{sent}\n"
        f"    let reply = mft_bridge::ask(question);\n    let mut from = In::new(&reply);\n"
        f"    let result: {head.static_result} = Take::take(&mut from);{back}\n    result\n}}\n"
        f"{body}\nfn main() {{ mft_bridge::judge(&[{listed}]) }}\n"
    )


class Head:
    """The parts of a function's head."""

    def __init__(self, context: str, name: str, generics: str, parameters: str, arrow: str):
        self.context, self.name, self.generics, self.parameters, self.arrow = context, name, generics, parameters, arrow
        pairs = [re.sub(r"^mut\s+", "", part).partition(":") for part in split_parameters(parameters)]
        self.names = [name.strip() for name, _, _ in pairs]
        self.types = [_static(type_.strip()) for _, _, type_ in pairs]

    @classmethod
    def of(cls, declaration: str, entry_point: str) -> "Head":
        """The entry point's head; that of the last function if the data names another entry point."""
        pattern = r"^[ \t]*(?:pub\s+)?fn\s+(?P<name>\w+)\s*(<[^(]*>)?\s*\(([^{}]*?)\)\s*(->[^{]+?)?\s*\{"
        head = entry_head(pattern, declaration, entry_point, "Rust: no function")
        name, generics, parameters, arrow = (part or "" for part in head.groups())
        return cls(declaration[: head.start()], name, generics, parameters, arrow)

    @property
    def static_result(self) -> str:
        """The result's type as decoded: references are 'static, because what they point to lives as long as the process."""
        return _static(self.arrow.removeprefix("->").strip() or "()")

    @property
    def uses(self) -> str:
        """The declaration's imports, which its types need."""
        return " ".join(re.findall(r"^\s*use [^;]*;", self.context, re.MULTILINE))

    def is_changed(self, number: int) -> bool:
        """True if the function may change what this parameter refers to."""
        return self.types[number].startswith("&'static mut")


def _static(type_: str) -> str:
    return re.sub(r"&\s*(?:'\w+\s*)?", "&'static ", type_)


_ENUM = r"(?:#\[derive\([^)]*\)\]\s*)?(?:pub\s+)?enum\s+\w+\s*(?:<[^>]*>)?\s*\{[^}]*\}"


@dataclass(frozen=True)
class Enum:
    """A type that the problem defines and its function returns."""

    definition: str
    name: str
    parameters: str  # `S, F`, or nothing
    variants: tuple[tuple[str, int], ...]  # name, and its number of values; -1 for a variant without parentheses

    @classmethod
    def of(cls, definition: str) -> "Enum":
        """From the source of an enum whose variants have unnamed values, or none."""
        match = re.search(r"enum\s+(\w+)\s*(?:<([^>]*)>)?\s*\{([^}]*)\}", definition)
        if match is None:
            raise ExecutionError(f"no enum: {definition[:200]!r}")
        found = re.findall(r"(\w+)\s*(\([^)]*\))?\s*(?:,|$)", match.group(3).strip())
        variants = tuple(
            (name, len([part for part in values.strip("()").split(",") if part.strip()]) if values else -1)
            for name, values in found
        )
        return cls(definition + "\n", match.group(1), match.group(2) or "", variants)

    def _implement(self, trait: str, body: str) -> str:
        bounds = ", ".join(
            f"{name.strip()}: mft_bridge::{trait}" for name in self.parameters.split(",") if name.strip()
        )
        return f"    impl<{bounds}> mft_bridge::{trait} for {self.name}<{self.parameters}> {{ {body} }}\n"

    def put(self, tests: str) -> str:
        """Rust code that encodes the answer's type of this name; only variants that the tests name cross."""
        arms = ""
        for number, (name, size) in enumerate(self.variants):
            values = [f"v{n}" for n in range(size)]
            pattern = f"({', '.join(values)})" if size >= 0 else ""
            sent = "".join(f" {value}.put(out);" for value in values)
            if re.search(rf"\b{self.name}::{name}\b", tests):
                arms += f"super::{self.name}::{name}{pattern} => {{ out.push({number});{sent} }} "
        body = f"fn put(&self, out: &mut std::vec::Vec<u8>) {{ match self {{ {arms}_ => out.push(255) }} }}"
        return f"    use super::{self.name};\n" + self._implement("Wire", body)

    def take(self) -> str:
        """Rust code that decodes the judge's type of this name."""
        arms = ""
        for number, (name, size) in enumerate(self.variants):
            values = f"({', '.join(['mft_bridge::Take::take(from)'] * size)})" if size >= 0 else ""
            arms += f"{number} => {self.name}::{name}{values}, "
        body = f'fn take(from: &mut mft_bridge::In) -> Self {{ match <u8 as mft_bridge::Take>::take(from) {{ {arms}_ => panic!("no such variant") }} }}'
        return self._implement("Take", body)


runner = partial(CompiledRunner, plan, alone, linted)


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Compile the crates and the bridge."""
    sysroot = output_of(tools["rustc"], "--print", "sysroot").strip()
    version = output_of(tools["rustc"], "--version").strip()
    if not Path(_REGISTRY).is_dir():
        raise ExecutionError(
            f"Rust: no crates in {_REGISTRY}. Debian or Ubuntu: apt-get install librust-rand-dev librust-regex-dev "
            "librust-md5-dev librust-aho-corasick-dev librust-memchr-dev"
        )
    real = {name: f"{sysroot}/bin/{name}" for name in ("rustc", "clippy-driver") if Path(sysroot, "bin", name).exists()}
    contents = "".join(path.read_text() for path in (_RAND, _MANIFEST, _BRIDGE))
    cache = cached("rust", version + contents + " ".join(_FLAGS), lambda folder: _build_crates(folder, tools))
    return Toolchain("rust", real, cache, (cache, sysroot), version)


def _build_crates(folder: Path, tools: Mapping[str, str]) -> None:
    shutil.copyfile(_MANIFEST, folder / "Cargo.toml")
    (folder / "lib.rs").write_text("")
    config = folder / ".cargo" / "config.toml"
    config.parent.mkdir()
    config.write_text(f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{_REGISTRY}"\n')
    output_of(tools["cargo"], "build", "--offline", "--quiet", cwd=str(folder))
    (folder / "target/debug/deps").rename(folder / "deps")
    found = {
        path.name.removeprefix("lib").partition("-")[0]: str(path) for path in sorted((folder / "deps").glob("*.rlib"))
    }
    shim = (tools["rustc"], *_FLAGS, "--crate-type", "rlib", "--crate-name", "rand", "-L", f"dependency={folder}/deps")
    output_of(*shim, "--extern", f"rand8={found['rand']}", "--out-dir", str(folder), str(_RAND))
    bridge = (tools["rustc"], *_FLAGS, "-O", "--crate-type", "rlib", "--crate-name", "mft_bridge")
    output_of(*bridge, "--out-dir", str(folder), str(_BRIDGE))
    externs = {
        "mft_bridge": f"{folder}/libmft_bridge.rlib",
        "rand": f"{folder}/librand.rlib",
        "regex": found["regex"],
        "md5": found["md5"],
    }
    (folder / "externs").write_text("\n".join(f"{name}={path}" for name, path in externs.items()))
    os.sync()
