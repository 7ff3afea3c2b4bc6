"""All exceptions that a user can see, and how messages of other libraries are quoted.

    MftError                 a user's mistake: one line for each problem, exit code 2, no traceback
    ├── ConfigError          a config file, an override, a field
    ├── DataError            a record, a data file, a task folder
    ├── ModelError           a model folder, a tokenizer, an adapter
    ├── CheckpointError      a checkpoint that is missing, damaged or made with another config
    ├── TrainingError        a run that cannot continue: a loss that is not finite
    ├── GenerationError      a generations file, an engine
    ├── EndpointError        an OpenAI-compatible endpoint: it does not answer, refuses, or changed its model
    ├── BenchmarkError       a benchmark, its data, its results
    └── ExecutionError       the sandbox or a toolchain: never the model's failure
    BudgetSpent              a synthesis that used its budget: exit code 3, with what is finished written
    NoAnswerAcceptedError    an assistant whose model gave no answer that holds: exit code 1, with the reasons
    BrokenReleaseError       a quantized model that lost too much: exit code 1, and nothing is left
    UnjudgedError            an evaluation that could not judge every answer: exit code 1 and no score
    Interrupted              a stop after a clean save that says how to continue: exit code 130 for Ctrl-C, 75 (try again) for SIGTERM

Any other exception that reaches the command line is a bug in this package: traceback, exit code 1. Broken invariants are `assert` or
`ValueError`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

REQUEUE_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong; start the same command again."""


def reason(error: BaseException) -> str:
    """What an error of another library says, on one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class MftError(Exception):
    """A mistake that the user can correct. Each of `problems` is one line: what is wrong, where, and what to do."""

    def __init__(self, *problems: str):
        if not problems:
            raise ValueError("an MftError says what is wrong")
        self.problems: tuple[str, ...] = problems
        self.reported = False  # True if another process of the run prints it
        super().__init__("\n".join(problems))

    @classmethod
    def collect(cls, problems: Iterable[str], *, limit: int = 20) -> "MftError":
        """One error with many lines. After `limit` lines the rest is only counted."""
        lines = list(problems)
        shown = lines[:limit]
        if len(lines) > limit:
            shown.append(f"... and {len(lines) - limit} more")
        return cls(*shown)


class ConfigError(MftError):
    """A config file, an override or a field cannot be used."""


class DataError(MftError):
    """A record, a data file or a task folder cannot be used."""


class ModelError(MftError):
    """A model folder, a tokenizer or an adapter cannot be used."""


class CheckpointError(MftError):
    """A checkpoint is missing, damaged, or was made by another config."""


class TrainingError(MftError):
    """A run cannot continue. Its last good checkpoint is kept."""


class GenerationError(MftError):
    """A generations file or a generation engine cannot be used."""


class EndpointError(MftError):
    """An OpenAI-compatible endpoint cannot be used. The answers so far are kept."""


class BenchmarkError(MftError):
    """A benchmark, its data or its results cannot be used."""


class ExecutionError(MftError):
    """The sandbox or a toolchain failed. Never counted as the model's failure."""


class BudgetSpent(Exception):  # noqa: N818  # a stop that was requested, not an error
    """The next request does not fit into the budget. What is finished is written; `hint` says how to go on."""

    exit_code = 3

    def __init__(self, hint: str):
        self.hint = hint
        super().__init__(hint)


class UnsuccessfulError(Exception):
    """A command that did its work, but cannot give what it is for. Each of `problems` is one line."""

    exit_code = 1

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


class NoAnswerAcceptedError(UnsuccessfulError):
    """The model gave no answer that passes its checks. The problems say which answer, and why it was refused."""

    def __init__(self, *problems: str, refusals: Sequence[Any] = ()):
        self.refusals = tuple(refusals)
        super().__init__(*problems)


class BrokenReleaseError(UnsuccessfulError):
    """A quantized model was written, loaded back and found to have lost too much."""


class UnjudgedError(UnsuccessfulError):
    """Answers could not be judged, because the machine or the tests fail even without them."""

    def __init__(self, *problems: str, scores: Sequence[Any] = ()):
        self.scores = scores  # of all files, those that were judged too
        super().__init__(*problems)


class Interrupted(Exception):  # noqa: N818  # a stop that was requested, not an error
    """The run was stopped. `hint` says how to continue. `requeue` is true if a scheduler stopped it."""

    def __init__(self, hint: str, *, requeue: bool = False):
        self.hint, self.requeue = hint, requeue
        self.exit_code = REQUEUE_CODE if requeue else 130
        super().__init__(hint)
