"""What a benchmark is: problems, the prompt for each, the answer in what a model wrote, and the program that judges it.

Goes in: rows of data (sources.py). Comes out: `Problem`s and, for an answer, the `Program` that execution/ runs. A benchmark
family (humaneval.py, mbpp.py, ...) fills in the four functions; this module knows no benchmark and runs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mftcoder.execution.sandbox import Program

FENCE = "```"
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


def _own_stop_words(problem: Problem, mode: PromptMode) -> tuple[str, ...]:
    return () if mode == "chat" else problem.stop


@dataclass(frozen=True)
class Family:
    """How all problems of a kind are prompted, read and judged."""

    prompt: Callable[[Problem, PromptMode], str]
    extract: Callable[[Problem, str, PromptMode], str]
    program: Callable[[Problem, str], Program]
    notes: Mapping[str, str]  # header, test set, post-processing: recorded with every result, for they move scores
    timeout_seconds: float = 10.0
    stop: Callable[[Problem, PromptMode], tuple[str, ...]] = _own_stop_words  # words that end a completion
    fenced: tuple[PromptMode, ...] = ("chat",)  # modes in which `extract` looks for a fenced block by itself
    is_whole: Callable[[Problem, str], bool] | None = None  # do a completion's lines hold all that `extract` keeps?


@dataclass(frozen=True)
class Asking:
    """How a task's problems are put to a model."""

    mode: PromptMode = "completion"
    prefix: str = ""
    suffix: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether text behind the prompt makes the model answer rather than go on: `<|im_end|>\\n<|im_start|>assistant`."""
        return bool(self.suffix.strip())


@dataclass(frozen=True)
class Benchmark:
    """A task's problems with its family's ways."""

    name: str
    problems: Sequence[Problem]
    family: Family
    source: str  # where the rows came from, with their checksum

    def prompt(self, problem: Problem, asking: Asking) -> str:
        """The text a model is given."""
        return asking.prefix + self.family.prompt(problem, asking.mode) + asking.suffix

    def stop(self, problem: Problem, asking: Asking) -> tuple[str, ...]:
        """The words that end a completion; () leaves it to the model's EOS token.

        A model that answers may put prose and a fence before its code, and stop words are only right for code.
        """
        if asking.is_answered and asking.mode not in self.family.fenced:
            return (FENCE,) if FENCE in asking.suffix else ()
        return self.family.stop(problem, asking.mode)

    def is_whole(self, problem: Problem, asking: Asking) -> Callable[[str], bool] | None:
        """A test of a completion's whole lines: True if they are the answer, so that generation may end. None if there is no such test."""
        judge = self.family.is_whole
        if judge is None or asking.is_answered or asking.mode in self.family.fenced:
            return None
        return lambda text: judge(problem, asking.suffix + text)

    def extract(self, problem: Problem, text: str, asking: Asking) -> str:
        """What goes into the generations file: the answer within what the model wrote."""
        mode = asking.mode
        if mode in self.family.fenced:
            return self.family.extract(problem, text, mode)
        if not asking.is_answered:
            return self.family.extract(problem, asking.suffix + text, mode)  # a blank suffix is part of the code
        if FENCE in asking.suffix:
            return text.partition(FENCE)[0]  # the suffix has opened the block
        return self.family.extract(problem, text, "chat" if FENCE in text else mode)

    def program(self, problem: Problem, answer: str) -> Program:
        """The answer with its tests, ready to run."""
        return self.family.program(problem, answer)

    def limited(self, count: int | None) -> "Benchmark":
        """The first `count` problems; all of them for None."""
        return self if count is None else replace(self, problems=tuple(self.problems)[:count])
