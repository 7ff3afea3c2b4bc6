"""The table of languages: for each its module, the tools that it needs and how to install them.

A language's module defines `prepare(tools)` and `runner(toolchain, tests_zygote)`. Python has no module, because its tests run in
the worker.
"""

import importlib
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from mftcoder.errors import ExecutionError
from mftcoder.execution.compiled.judging import Sides
from mftcoder.execution.python.zygote_handle import ZygoteHandle
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain, find
from mftcoder.registry import did_you_mean


@dataclass(frozen=True)
class Language:
    """One language."""

    name: str
    title: str
    tools: tuple[str, ...]
    debian: str  # package names; Ubuntu has the same ones
    macos: str  # Homebrew package names
    module: str = ""  # in compiled/; empty for Python

    @property
    def install(self) -> str:
        """How to install the tools, as one sentence."""
        return f"Debian or Ubuntu: apt-get install {self.debian}. macOS: brew install {self.macos}."

    def missing(self) -> list[str]:
        """Tools that are not on the PATH."""
        return [tool for tool in self.tools if shutil.which(tool) is None]


_RUST = "rustc cargo librust-rand-dev librust-regex-dev librust-md5-dev librust-aho-corasick-dev librust-memchr-dev"
LANGUAGES: Mapping[str, Language] = {
    row.name: row
    for row in (
        Language("python", "Python", (), "python3", "python"),
        Language("js", "JavaScript", ("node",), "nodejs", "node", "javascript"),
        Language("cpp", "C++", ("g++", "ld", "objcopy"), "g++ libboost-dev libssl-dev", "gcc boost openssl", "cpp"),
        Language("java", "Java", ("javac", "java"), "default-jdk-headless", "openjdk", "java"),
        Language("go", "Go", ("go",), "golang-go golang-github-stretchr-testify-dev", "go", "go"),
        Language("rust", "Rust", ("rustc", "cargo"), _RUST, "rust", "rust"),
    )
}


def language(name: str) -> Language:
    """The language of this name; ExecutionError if there is none."""
    if name not in LANGUAGES:
        raise ExecutionError(f"unknown language '{name}'.{did_you_mean(name, LANGUAGES)}")
    return LANGUAGES[name]


def prepare(name: str) -> Toolchain:
    """Build the language's toolchain, or find it built; ExecutionError with the tools that are missing."""
    row = language(name)
    tools = find(row.tools, row.install, row.title)
    return _module(row).prepare(tools) if row.module else Toolchain(name, tools)


def _module(row: Language) -> Any:
    return importlib.import_module(f"mftcoder.execution.compiled.{row.module}")


class Runner(Protocol):
    """Runs a slot's programs in one language."""

    def sides(
        self, program: Program, limits: Limits, zygote: ZygoteHandle
    ) -> AbstractContextManager[Sides | ExecutionResult]:
        """The candidate (in this zygote) and its judge, ready to run; or the compile error of the answer."""

    def compile(self, code: str, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """`passed` if the code compiles as a file of its own, else the compile error."""

    def warnings(self, program: Program, limits: Limits, zygote: ZygoteHandle) -> ExecutionResult:
        """What the linter or the compiler says about the code as it stands, as stdout; empty where there is none."""

    def close(self) -> None:
        """End the judge's processes."""


def runner(toolchain: Toolchain, tests_zygote: ZygoteHandle) -> Runner:
    made: Runner = _module(language(toolchain.language)).runner(toolchain, tests_zygote)
    return made
