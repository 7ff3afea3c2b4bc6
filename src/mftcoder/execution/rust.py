"""Rust: rustc of edition 2021 without optimisation, with the crates that the data's programs name (rand, regex, md5).

The candidate is a crate of its own that exports wrappers with the problem's signatures; the tests are another crate that
imports just those. So no macro, trait or type of the candidate's reaches the tests, and attributes that would replace
symbols of the whole program are refused.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.plan import PROOF_DESCRIPTOR, Plan, Step
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, fast_linker, output_of

_FLAGS = ("--edition", "2021", "--cap-lints", "allow", "-C", "debuginfo=0", "-C", "codegen-units=1")
_REGISTRY = "/usr/share/cargo/registry"  # where Debian's librust-*-dev packages put their sources
_SYMBOLS = re.compile(r"\b(no_mangle|export_name|link_section|link_name|global_asm)\b")
_STANDARD_TYPES = frozenset({"String", "Vec", "Option", "Some", "None", "Result", "Ok", "Err", "Box"})
_TEST = re.compile(r"#\[test\](?:\s|//[^\n]*\n)*(?:pub\s+)?fn\s+(\w+)")
_NO_SYMBOLS = 'compile_error!("attributes that export symbols are not allowed here");\n'

# The tests of the data call rand as it was at 0.4: gen_range(low, high). Its numbers are the same in every run, so that a verdict
# can be repeated: the reference of Rust/32, Newton's method, does not converge for about half of all seeds, and does for this one.
_RAND_SHIM = """pub use rand8::{rngs, seq, distributions, RngCore, SeedableRng};
use rand8::distributions::{uniform::SampleUniform, Distribution, Standard};
use std::cell::RefCell;
thread_local! { static SOURCE: RefCell<rngs::StdRng> = RefCell::new(rngs::StdRng::seed_from_u64(4)); }
#[derive(Clone, Debug, Default)] pub struct ThreadRng;
impl RngCore for ThreadRng {
    fn next_u32(&mut self) -> u32 { SOURCE.with(|s| s.borrow_mut().next_u32()) }
    fn next_u64(&mut self) -> u64 { SOURCE.with(|s| s.borrow_mut().next_u64()) }
    fn fill_bytes(&mut self, to: &mut [u8]) { SOURCE.with(|s| s.borrow_mut().fill_bytes(to)) }
    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), rand8::Error> { Ok(self.fill_bytes(to)) }
}
pub fn thread_rng() -> ThreadRng { ThreadRng }
pub fn random<T>() -> T where Standard: Distribution<T> { Rng::gen(&mut thread_rng()) }
pub trait Rng: RngCore {
    fn gen<T>(&mut self) -> T where Standard: Distribution<T> { rand8::Rng::gen(self) }
    fn gen_range<T: SampleUniform + PartialOrd>(&mut self, low: T, high: T) -> T { rand8::Rng::gen_range(self, low..high) }
    fn gen_bool(&mut self, p: f64) -> bool { rand8::Rng::gen_bool(self, p) }
}
impl<R: RngCore + ?Sized> Rng for R {}
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
    exports = (files.get("exports") or files["entry_point"]).split(",")
    heads = [Head.of(files["declaration"], name) for name in exports]
    crates = ("-L", f"dependency={toolchain.cache}/deps", *_externs(toolchain.cache))
    types = heads[0].own_types(files["tests"])
    source = _published(files["candidate"], types) + "".join(head.export() for head in heads)
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
        *(part for flag in fast_linker() for part in ("-C", f"link-arg={flag}")),
        "tests.rs",
    )
    steps = (
        Step({"candidate.rs": source}, candidate),
        Step({"tests.rs": _tests(files["tests"], heads, types, key)}, tests, keep=("libcandidate.rlib",)),
    )
    return Plan(steps, ("./program",), ("program",), key, environment={"TMPDIR": "."})


def _externs(cache: str) -> tuple[str, ...]:
    listed = Path(cache, "externs").read_text().split()
    return tuple(argument for name in listed for argument in ("--extern", name))


def _published(candidate: str, types: Sequence[str]) -> str:
    """The candidate with these types of its own made public."""
    for name in types:
        candidate = re.sub(rf"(?<!pub )\b(enum|struct|type)\s+{name}\b", rf"pub \1 {name}", candidate)
    return candidate


def _tests(tests: str, heads: Sequence["Head"], types: Sequence[str], key: str) -> str:
    """The tests as plain functions of a program whose main calls each, then writes the key."""
    body = re.sub(r"#\[cfg\(test\)\]", "", tests)
    names = _TEST.findall(body)
    if not names:
        raise ValueError("no #[test] function in the tests: nothing would be proved")
    body = _TEST.sub(r"pub fn \1", body)
    module = re.search(r"\bmod\s+(\w+)", body)
    calls = "".join(f"    {module.group(1) if module else 'self'}::{name}();\n" for name in names)
    write = (
        "    use std::{io::Write, os::unix::io::FromRawFd};\n"
        f"    let mut out = unsafe {{ std::fs::File::from_raw_fd({PROOF_DESCRIPTOR}) }};\n"
        f'    out.write_all(b"{key}").unwrap();\n'
    )
    names_here = [f"{head.exported} as {head.name}" for head in heads]
    imported = "".join(f"use candidate::{name};\n" for name in [*names_here, *types])
    return f"{heads[0].context}\n{imported}{body}\nfn main() {{\n{calls}{write}}}\n"


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

    @property
    def exported(self) -> str:
        """What the tests' crate knows it by."""
        return f"mft_{self.name}"

    def own_types(self, tests: str) -> list[str]:
        """Types of the signature that the tests name and nothing but the candidate can define (one problem's answer type)."""
        named = set(re.findall(r"\b[A-Z]\w+", self.parameters + self.result)) & set(re.findall(r"\b[A-Z]\w+", tests))
        return sorted(name for name in named - _STANDARD_TYPES if not re.search(rf"\b{name}\b", self.context))

    def export(self) -> str:
        """The wrapper."""
        names = re.findall(r"(?:^|,)\s*(?:mut\s+)?(\w+)\s*:", _without_types(self.parameters))
        signature = re.sub(r"\bmut\s+(\w+\s*:)", r"\1", self.parameters)
        return f"\npub fn {self.exported}{self.generics}({signature}) {self.result} {{ {self.name}({', '.join(names)}) }}\n"


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
            f"Rust: no crates in {_REGISTRY}. Debian or Ubuntu: apt-get install librust-rand-dev librust-regex-dev "
            "librust-md5-dev librust-aho-corasick-dev librust-memchr-dev"
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
