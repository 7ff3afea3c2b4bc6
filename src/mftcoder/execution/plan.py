"""How a compiled program is built and run: what a language's module hands to command_run.py.

Goes in: nothing. Comes out: `Step` and `Plan`, plain data. The proof of a pass in these languages: the tests' half is compiled
apart from the candidate's, ends by writing a random key to a descriptor of its own, and no file with the key is left when the
program runs. So exiting early, printing what a harness looks for or shadowing what the tests use proves nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PROOF_DESCRIPTOR = 3
MEMORY_MB = "@MEMORY_MB@"
"""Stands in a plan's command for the program's memory limit, for runtimes that want to be told."""


@dataclass(frozen=True)
class Step:
    """Files to write, then a compiler to run on them. A step sees the files of those before it that `keep` names."""

    files: Mapping[str, str]
    command: tuple[str, ...]
    keep: tuple[str, ...] = ()  # of the earlier steps' files; all others are removed before this step


@dataclass(frozen=True)
class Plan:
    """From sources to a verdict."""

    steps: tuple[Step, ...]
    command: tuple[str, ...]
    keep: tuple[str, ...]  # what the run may see of the steps' files
    key: str  # what the tests write to PROOF_DESCRIPTOR at their end
    environment: Mapping[str, str] = field(default_factory=dict)
    overhead_mb: int = 0  # memory a runtime needs beside what its program may use
    address_mb: int = 1024  # address space beyond the memory limit; some runtimes reserve far more than they use
