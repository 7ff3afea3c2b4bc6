"""A row a language: its module, its file, the tools it needs and how to get them.

Goes in: a language's name. Comes out: its row; `prepare` makes its toolchain ready, or says what is missing; `runner` is what runs a
slot's programs in it. A language's module has `prepare(tools)` and `runner(toolchain, tests_zygote)`; Python, whose tests run in the
worker, has none.
"""

import importlib
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

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
    extension: str
    tools: tuple[str, ...]
    debian: str  # packages; Ubuntu has the same names
    macos: str  # Homebrew
    module: str | None = None  # None: programs are judged in the language itself

    @property
    def install(self) -> str:
        """One sentence for a user who lacks it."""
        return f"Debian or Ubuntu: apt-get install {self.debian}. macOS: brew install {self.macos}."

    def missing(self) -> list[str]:
        """Tools that are not on the PATH."""
        return [tool for tool in self.tools if shutil.which(tool) is None]


LANGUAGES: Mapping[str, Language] = {
    row.name: row
    for row in (
        Language("python", "Python", "py", (), "python3", "python"),
        Language("js", "JavaScript", "js", ("node",), "nodejs", "node", "mftcoder.execution.compiled.javascript"),
        Language(
            "cpp",
            "C++",
            "cpp",
            ("g++", "ld", "objcopy"),
            "g++ libboost-dev libssl-dev",
            "gcc boost openssl",
            "mftcoder.execution.compiled.cpp",
        ),
        Language(
            "java",
            "Java",
            "java",
            ("javac", "java"),
            "default-jdk-headless",
            "openjdk",
            "mftcoder.execution.compiled.java",
        ),
        Language(
            "go",
            "Go",
            "go",
            ("go",),
            "golang-go golang-github-stretchr-testify-dev",
            "go",
            "mftcoder.execution.compiled.go",
        ),
        Language(
            "rust",
            "Rust",
            "rs",
            ("rustc", "cargo"),
            "rustc cargo librust-rand-dev librust-regex-dev librust-md5-dev librust-aho-corasick-dev librust-memchr-dev",
            "rust",
            "mftcoder.execution.compiled.rust",
        ),
    )
}


def language(name: str) -> Language:
    """The row; ExecutionError for an unknown name."""
    if name not in LANGUAGES:
        raise ExecutionError(f"unknown language '{name}'.{did_you_mean(name, LANGUAGES)}")
    return LANGUAGES[name]


def prepare(name: str) -> Toolchain:
    """The language's toolchain, its caches built; ExecutionError that says what is missing."""
    row = language(name)
    tools = find(row.tools, row.install, row.title)
    if row.module is None:
        return Toolchain(name, tools)
    return importlib.import_module(row.module).prepare(tools)


class Runner(Protocol):
    """Runs a slot's programs in one language."""

    def sides(
        self, program: Program, limits: Limits, zygote: ZygoteHandle
    ) -> AbstractContextManager[Sides | ExecutionResult]:
        """An answer, in this zygote, and its tests, ready to run; or how the answer does not compile."""

    def close(self) -> None:
        """End what belongs to the tests."""


def runner(toolchain: Toolchain, tests_zygote: ZygoteHandle) -> Runner:
    """What runs programs in this toolchain's language."""
    made: Runner = importlib.import_module(str(language(toolchain.language).module)).runner(toolchain, tests_zygote)
    return made
