"""What a benchmark is: problems, the prompt for each, the answer in a completion, and the program that tests an answer.

A benchmark family (families/) supplies these functions. Running programs is left to execution/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mftcoder.benchmarks.sources import Source
from mftcoder.execution.sandbox import Program

FENCE = "```"
PromptMode = Literal["completion", "instruct", "chat"]
"""completion: the model continues the prompt. instruct: the same prompt behind its instruction, as in the reference harness.
chat: a user's message, around which the caller puts the model's template; the answer is a fenced block."""


@dataclass(frozen=True)
class Problem:
    """One problem. `prompt` is the code that an answer continues; `fields` is the record of the data file."""

    id: str
    language: str
    prompt: str
    tests: str
    entry_point: str
    stop: tuple[str, ...] = ()
    reference: str = ""  # the data's solution, in the form of a completion
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def _own_stop_words(problem: Problem, mode: PromptMode) -> tuple[str, ...]:
    return () if mode == "chat" else problem.stop


@dataclass(frozen=True)
class Family:
    """How problems of one kind are prompted, how answers are extracted, and how they become programs."""

    prompt: Callable[[Problem, PromptMode], str]
    extract: Callable[[Problem, str, PromptMode], str]
    program: Callable[[Problem, str], Program]
    notes: Mapping[
        str, str
    ]  # header, test set, post-processing: recorded with every result, because scores depend on them
    timeout_seconds: float = 10.0
    stop: Callable[[Problem, PromptMode], tuple[str, ...]] = _own_stop_words  # words that end a completion
    fenced: tuple[PromptMode, ...] = ("chat",)  # modes in which `extract` itself looks for a fenced block
    is_whole: Callable[[Problem, str], bool] | None = None  # True if these lines contain all that `extract` keeps


@dataclass(frozen=True)
class Asking:
    """How a model is asked: the prompt mode, and text before and after each prompt."""

    mode: PromptMode = "completion"
    prefix: str = ""
    suffix: str = ""

    @property
    def is_answered(self) -> bool:
        """True if the suffix makes the model answer instead of continuing the prompt: `<|im_end|>\\n<|im_start|>assistant`."""
        return bool(self.suffix.strip())


@dataclass(frozen=True)
class Benchmark:
    """The problems of a task and their family."""

    name: str
    problems: Sequence[Problem]
    family: Family
    source: str  # the data file and its checksum

    def prompt(self, problem: Problem, asking: Asking) -> str:
        """The text that the model gets."""
        return asking.prefix + self.family.prompt(problem, asking.mode) + asking.suffix

    def stop(self, problem: Problem, asking: Asking) -> tuple[str, ...]:
        """The words that end a completion; with () only the EOS token ends it.

        A model that answers may write prose and a fence before its code, and stop words fit code only.
        """
        if asking.is_answered and asking.mode not in self.family.fenced:
            return (FENCE,) if FENCE in asking.suffix else ()
        return self.family.stop(problem, asking.mode)

    def is_whole(self, problem: Problem, asking: Asking) -> Callable[[str], bool] | None:
        """A function that is True for complete lines that contain the whole answer, so that generation may end; None without one."""
        is_whole = self.family.is_whole
        if is_whole is None or asking.is_answered or asking.mode in self.family.fenced:
            return None
        return lambda text: is_whole(problem, asking.suffix + text)

    def extract(self, problem: Problem, text: str, asking: Asking) -> str:
        """The answer in a completion, as the generations file holds it."""
        mode = asking.mode
        if mode in self.family.fenced:
            return self.family.extract(problem, text, mode)
        if not asking.is_answered:
            return self.family.extract(
                problem, asking.suffix + text, mode
            )  # a suffix of whitespace is part of the code
        if FENCE in asking.suffix:
            return text.partition(FENCE)[0]  # the suffix opened the block
        return self.family.extract(problem, text, "chat" if FENCE in text else mode)

    def program(self, problem: Problem, answer: str) -> Program:
        """The program of an answer and its tests."""
        return self.family.program(problem, answer)

    def limited(self, count: int | None) -> "Benchmark":
        """The benchmark with its first `count` problems; None: with all."""
        return self if count is None else replace(self, problems=tuple(self.problems)[:count])


@dataclass(frozen=True)
class Task:
    """A task of a family's table: how to load it, and what `mft benchmarks` shows without loading it."""

    load: Callable[[Path | None], Benchmark]
    language: str
    problems: int  # 0: as many as the user's own data has
    licence: str
    source: Source | None  # None: the data comes with the package


def task_of(
    name: str,
    source: Source,
    problem_of: Callable[[Mapping[str, Any]], Problem],
    family: Family,
    language: str,
    problems: int,
    licence: str,
) -> tuple[str, Task]:
    """The row of a task whose problems are the records of its source, one by one."""

    def load(data_dir: Path | None) -> Benchmark:
        records, origin = source.records(name, data_dir)
        return Benchmark(name, tuple(map(problem_of, records)), family, origin)

    return name, Task(load, language, problems, licence, source)
