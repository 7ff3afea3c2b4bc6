"""How a compiled program becomes two processes: what a language's module hands to command_run.py.

Goes in: nothing. Comes out: `Build` and `Plan`, plain data. The answer and the tests are built apart, each into a program of its
own, and meet only as processes that exchange plain values (relay.py). So nothing an answer does to its own process, by a type, a
macro, a symbol, an allocator, a signal or a rewritten instruction, reaches a test or an expected value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

WIRE = 3
"""The descriptor on which both processes talk."""
PRODUCT = 3
"""The descriptor on which a build hands over the program it has made."""
PROGRAM, CHANGE = "@PROGRAM@", "@CHANGE@"
"""Stand in a run's command for the program that was built, and for what the tests are to change."""
MEMORY_MB = "@MEMORY_MB@"
"""Stands in a run's command for the program's memory limit, for runtimes that want to be told."""


@dataclass(frozen=True)
class Build:
    """Files to write, then a command that reads them and writes a program to descriptor `PRODUCT`."""

    files: Mapping[str, str]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """From sources to a verdict."""

    answer: Build
    tests: Build  # its program takes as its argument what to change
    claims: int  # of the tests that can be changed; see claims.py
    plain_tests: Build  # the same tests as they came, for those that do not compile once their claims are lifted
    address_mb: int = 1024  # address space beyond the memory limit; some runtimes reserve far more than they use


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs `script` with these arguments, then hands over the file `program`."""
    return ("/bin/sh", "-c", f"{script} && cat program >&{PRODUCT}", "sh", *arguments)
