"""What a benchmark is: problems, the prompt for each, the answer in what a model wrote, and the program that judges it.

Goes in: rows of data (sources.py). Comes out: `Problem`s and, for an answer, the `Program` that execution/ runs. A benchmark
family (humaneval.py, mbpp.py, ...) fills in the four functions; this module knows no benchmark and runs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mftcoder.execution.sandbox import Program

PromptMode = Literal["completion", "instruct", "chat"]
"""completion: the model goes on writing the prompt. instruct: the same prompt with its instruction in front, as the reference
harness has it. chat: a user's message; the caller puts the model's own template around it, and the code is fenced."""


@dataclass(frozen=True)
class Problem:
    """One problem. `prompt` is the code the answer goes on from; `fields` is the data's own row."""

    id: str
    language: str
    prompt: str
    tests: str
    entry_point: str
    stop: tuple[str, ...] = ()
    reference: str = ""  # the data's own solution, in the form a completion has
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Family:
    """How all problems of a kind are prompted, read and judged."""

    prompt: Callable[[Problem, PromptMode], str]
    extract: Callable[[Problem, str, PromptMode], str]
    program: Callable[[Problem, str], Program]
    notes: Mapping[str, str]  # header, test set, post-processing: recorded with every result, for they move scores
    timeout_seconds: float = 10.0


@dataclass(frozen=True)
class Benchmark:
    """A task's problems with its family's ways."""

    name: str
    problems: Sequence[Problem]
    family: Family
    source: str  # where the rows came from, with their checksum

    def prompt(self, problem: Problem, mode: PromptMode = "completion", *, prefix: str = "", suffix: str = "") -> str:
        """The text a model is given; `prefix` and `suffix` stand around it, for models tuned on a chat format."""
        return prefix + self.family.prompt(problem, mode) + suffix

    def extract(self, problem: Problem, text: str, mode: PromptMode = "completion") -> str:
        """What goes into the generations file: the answer within what the model wrote."""
        return self.family.extract(problem, text, mode)

    def program(self, problem: Problem, answer: str) -> Program:
        """The answer with its tests, ready to run."""
        return self.family.program(problem, answer)

    def limited(self, count: int | None) -> "Benchmark":
        """The first `count` problems; all of them for None."""
        return self if count is None else replace(self, problems=tuple(self.problems)[:count])
