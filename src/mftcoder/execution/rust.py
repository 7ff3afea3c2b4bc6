"""Rust: rustc of edition 2021 without optimisation, with the crates that the data's programs name (rand, regex, md5).

The candidate is a crate of its own that exports one wrapper with the problem's signature; the tests are another crate that
imports just that name. So no macro, trait or type of the candidate's reaches the tests, and attributes that would replace
symbols of the whole program are refused.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.plan import PROOF_DESCRIPTOR, Plan, Step
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

_FLAGS = ("--edition", "2021", "--cap-lints", "allow", "-C", "debuginfo=0", "-C", "codegen-units=1")
_REGISTRY = "/usr/share/cargo/registry"  # where Debian's librust-*-dev packages put their sources
_SYMBOLS = re.compile(r"\b(no_mangle|export_name|link_section|link_name|global_asm|used)\b")
_NO_SYMBOLS = 'compile_error!("attributes that export symbols are not allowed here");\n'

# The tests of the data call rand as it was at 0.4: gen_range(low, high).
_RAND_SHIM = """pub use rand8::{random, thread_rng, rngs, seq, distributions};
use rand8::distributions::{uniform::SampleUniform, Distribution, Standard};
pub trait Rng: rand8::RngCore {
    fn gen<T>(&mut self) -> T where Standard: Distribution<T> { rand8::Rng::gen(self) }
    fn gen_range<T: SampleUniform + PartialOrd>(&mut self, low: T, high: T) -> T { rand8::Rng::gen_range(self, low..high) }
    fn gen_bool(&mut self, p: f64) -> bool { rand8::Rng::gen_bool(self, p) }
}
impl<R: rand8::RngCore + ?Sized> Rng for R {}
pub mod prelude { pub use super::{random, thread_rng, Rng}; }
"""
_MANIFEST = """[package]
name = "mft-crates"
version = "0.0.0"
edition = "2021"
[lib]
path = "lib.rs"
[dependencies]
rand8 = { package = "rand", version = "0.8" }
regex = "1"
md5 = "0.7"
[profile.dev]
debug = 0
"""


def plan(program: Program, key: str, toolchain: Toolchain) -> Plan:
    """Compile the candidate's crate, then the tests against it."""
    files, rustc = program.files, toolchain.tools["rustc"]
    head = Head.of(files["declaration"], files["entry_point"])
    crates = ("-L", f"dependency={toolchain.cache}/deps", *_externs(toolchain.cache))
    source = files["candidate"] + head.export()
    if _SYMBOLS.search(source):
        source = _NO_SYMBOLS
    candidate = (rustc, *_FLAGS, *crates, "--crate-type", "rlib", "--crate-name", "candidate", "candidate.rs")
    tests = (
        rustc,
        *_FLAGS,
        *crates,
        "--extern",
        "candidate=libcandidate.rlib",
        "-o",
        "program",
        *_linker(toolchain),
        "tests.rs",
    )
    steps = (
        Step({"candidate.rs": source}, candidate),
        Step({"tests.rs": _tests(files["tests"], head, key)}, tests, keep=("libcandidate.rlib",)),
    )
    return Plan(steps, ("./program",), ("program",), key, environment={"TMPDIR": "."})


def _externs(cache: str) -> tuple[str, ...]:
    listed = Path(cache, "externs").read_text().split()
    return tuple(argument for name in listed for argument in ("--extern", name))


def _linker(toolchain: Toolchain) -> tuple[str, ...]:
    return ("-C", "link-arg=-fuse-ld=mold") if "mold" in toolchain.tools else ()


def _tests(tests: str, head: "Head", key: str) -> str:
    """The tests as plain functions of a program whose main calls each, then writes the key."""
    body = re.sub(r"#\[cfg\(test\)\]", "", tests)
    names = re.findall(r"#\[test\]\s*(?:pub\s+)?fn\s+(\w+)", body)
    body = re.sub(r"#\[test\]\s*(?:pub\s+)?fn\s", "pub fn ", body)
    module = re.search(r"\bmod\s+(\w+)", body)
    calls = "".join(f"    {module.group(1) if module else 'self'}::{name}();\n" for name in names)
    write = (
        "    use std::{io::Write, os::fd::FromRawFd};\n"
        f"    let mut out = unsafe {{ std::fs::File::from_raw_fd({PROOF_DESCRIPTOR}) }};\n"
        f'    out.write_all(b"{key}").unwrap();\n'
    )
    imported = f"use candidate::mft_entry as {head.name};\n"
    return f"{head.context}\n{imported}{body}\nfn main() {{\n{calls}{write}}}\n"


class Head:
    """A function's head taken apart."""

    def __init__(self, context: str, name: str, generics: str, parameters: str, result: str):
        self.context, self.name, self.generics, self.parameters, self.result = (
            context,
            name,
            generics,
            parameters,
            result,
        )

    @classmethod
    def of(cls, declaration: str, entry_point: str) -> "Head":
        """The entry point's head; the last function's where data and declaration disagree about its name."""
        pattern = r"^[ \t]*(?:pub\s+)?fn\s+(\w+)\s*(<[^(]*>)?\s*\(([^{}]*)\)\s*(->[^{]+?)?\s*\{"
        heads = list(re.finditer(pattern, declaration, re.MULTILINE))
        named = [head for head in heads if head.group(1) == entry_point]
        if not heads:
            raise ExecutionError(f"no function in the declaration: {declaration[-200:]!r}")
        head = (named or heads)[-1]
        name, generics, parameters, result = (part or "" for part in head.groups())
        return cls(declaration[: head.start()], name, generics, parameters, result)

    def export(self) -> str:
        """The wrapper."""
        names = re.findall(r"(?:^|,)\s*(?:mut\s+)?(\w+)\s*:", _without_types(self.parameters))
        signature = re.sub(r"\bmut\s+(\w+\s*:)", r"\1", self.parameters)
        return f"\npub fn mft_entry{self.generics}({signature}) {self.result} {{ {self.name}({', '.join(names)}) }}\n"


def _without_types(parameters: str) -> str:
    """Commas and colons inside of <>, () and [] taken out, so that those left separate parameters."""
    depth, kept = 0, []
    for character in parameters:
        depth += (character in "<([") - (character in ">)]")
        kept.append(" " if depth and character in ",:" else character)
    return "".join(kept)


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """Compile the crates once."""
    sysroot = output_of(tools["rustc"], "--print", "sysroot").strip()
    version = output_of(tools["rustc"], "--version").strip()
    if not Path(_REGISTRY).is_dir():
        raise ExecutionError(
            f"Rust: no crates in {_REGISTRY}. Debian or Ubuntu: apt-get install librust-rand-dev librust-regex-dev librust-md5-dev"
        )
    real = {"rustc": f"{sysroot}/bin/rustc"}
    cache = cached(
        "rust", version + _RAND_SHIM + _MANIFEST + " ".join(_FLAGS), lambda folder: _build_crates(folder, tools)
    )
    return Toolchain("rust", real, cache, (cache, sysroot), version)


def _build_crates(folder: Path, tools: Mapping[str, str]) -> None:
    (folder / "Cargo.toml").write_text(_MANIFEST)
    (folder / "lib.rs").write_text("")
    (folder / "rand.rs").write_text(_RAND_SHIM)
    config = folder / ".cargo" / "config.toml"
    config.parent.mkdir()
    config.write_text(f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{_REGISTRY}"\n')
    output_of(tools["cargo"], "build", "--offline", "--quiet", cwd=str(folder))
    (folder / "target/debug/deps").rename(folder / "deps")
    found = {
        path.name.removeprefix("lib").partition("-")[0]: str(path) for path in sorted((folder / "deps").glob("*.rlib"))
    }
    shim = (tools["rustc"], *_FLAGS, "--crate-type", "rlib", "--crate-name", "rand", "-L", f"dependency={folder}/deps")
    output_of(*shim, "--extern", f"rand8={found['rand']}", "--out-dir", str(folder), str(folder / "rand.rs"))
    externs = {"rand": f"{folder}/librand.rlib", "regex": found["regex"], "md5": found["md5"]}
    (folder / "externs").write_text("\n".join(f"{name}={path}" for name, path in externs.items()))
    os.sync()
