"""What a language's module hands to run.py: how the candidate and the judge of a compiled program are built.

The answer and the tests are built into separate programs and exchange only plain values (relay.py). So nothing that an answer does
to its own process (a type, a macro, a symbol, an allocator, a signal, a rewritten instruction) reaches a test or an expected value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mftcoder.errors import ExecutionError

BRIDGE = Path(__file__).parent / "bridge"
"""The folder with both halves of each language: what reads and writes the frames of relay.py."""
WIRE = 3
"""The descriptor on which a candidate or a judge exchanges frames."""
PRODUCT = 3
"""The descriptor to which a build writes the program that it made."""
PROGRAM, CHANGE = "@PROGRAM@", "@CHANGE@"
"""Placeholders in a run's command: the program that was built, and the `change` of judging.py."""
MEMORY_MB = "@MEMORY_MB@"
"""Placeholder in a run's command: the program's memory limit, for runtimes that need to know it."""


@dataclass(frozen=True)
class Build:
    """Files to write, then a command that reads them and writes a program to descriptor `PRODUCT`."""

    files: Mapping[str, str]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The builds of one program."""

    answer: Build
    tests: Build  # instrumented; its program takes `change` as its argument
    claims: int  # in the instrumented tests; see claims.py
    plain_tests: Build  # the tests without instrumentation, used if the instrumented ones do not compile
    address_mb: int = 1024  # address space beyond the memory limit; some runtimes reserve far more than they use


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs `script` with these arguments, then writes the file `program` to PRODUCT."""
    return ("/bin/sh", "-c", f"{script} && cat program >&{PRODUCT}", "sh", *arguments)


def listing(
    script: str, files: Mapping[str, str], *arguments: str, environment: Mapping[str, str] | None = None
) -> Build:
    """A build whose product is what a linter prints. A linter that finds something may fail: the text says so."""
    return Build(files, shell(f"{{ {script}; }} > program 2>&1; echo >> program", *arguments), environment or {})


def entry_head(pattern: str, declaration: str, entry_point: str, missing: str) -> re.Match[str]:
    """The entry point's head; that of the last function if the data names another entry point. ExecutionError without any.

    `pattern` has the group `name`; `missing` begins the error: `Go: no function`.
    """
    heads = list(re.finditer(pattern, declaration, re.MULTILINE))
    if not heads:
        raise ExecutionError(f"{missing} in the declaration: {declaration[-200:]!r}")
    named = [head for head in heads if head["name"] == entry_point]
    return (named or heads)[-1]


def split_parameters(parameters: str) -> list[str]:
    """`vector<int> a, map<char, int>& b` -> two parts: split at commas outside of brackets."""
    depth, parts = 0, [""]
    for character in parameters:
        depth += (character in "<([{") - (character in ">)]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
