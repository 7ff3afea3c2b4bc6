"""The assistant: its verbs on files of one folder, over one model, with one sandbox."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from mftcoder.assistant.files import Place, SourceFile, WorkingFolder, parse_place, read_bytes
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.model import Model
from mftcoder.assistant.rounds import Proposal
from mftcoder.assistant.suites.trials import LIMITS, MUTANTS, Trials
from mftcoder.assistant.verbs.change import fix, optimise, with_findings
from mftcoder.assistant.verbs.comment import comment
from mftcoder.assistant.verbs.complete import complete
from mftcoder.assistant.verbs.guard import function_of_log
from mftcoder.assistant.verbs.read import explain, review
from mftcoder.assistant.verbs.write_tests import require_tested, write_tests
from mftcoder.errors import ConfigError
from mftcoder.execution.run_programs import Sandbox
from mftcoder.execution.sandbox import Limits

ROUNDS = 3
MOST_READ = 1 << 20
"""Bytes or characters of a log's end, and of a diff."""


class Assistant:
    """Verbs that return proposals. Nothing is written until `apply`; code runs in the sandbox only.

        with Assistant(open_endpoint("http://127.0.0.1:8000/v1")) as assistant:
            proposal = assistant.comment("shapes.py:area")
            print(proposal.patch)
            assistant.apply(proposal)

    A verb raises NoAnswerAcceptedError if the model gives no answer that holds in `rounds` attempts, and an MftError for a mistake of
    the caller. Threads may share an assistant.
    """

    def __init__(
        self,
        model: Model,
        folder: str | Path = ".",
        *,
        rounds: int = ROUNDS,
        mutants: int = MUTANTS,
        limits: Limits = LIMITS,
    ):
        for name, value, most in (("rounds", rounds, 20), ("mutants", mutants, 100)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{name}: must be a whole number from 1 to {most}, not {value!r}")
        self.model, self.folder = model, WorkingFolder(Path(folder))
        self.rounds, self.mutants = rounds, mutants
        self._sandboxes: dict[str, Sandbox] = {}
        self._lock = threading.Lock()
        self.trials = Trials(self._opened, limits)

    def __enter__(self) -> "Assistant":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            while self._sandboxes:
                self._sandboxes.popitem()[1].close()

    def complete(self, place: str, *, block: bool | None = None) -> Proposal:
        """The rest of a line or a block at FILE:LINE[:COLUMN]. `block` None decides by the position."""
        where = parse_place(place)
        if not where.line:
            raise ConfigError(f"{place}: give FILE:LINE or FILE:LINE:COLUMN")
        return complete(self.model, self.folder.read(where.file), where, block=block, rounds=self.rounds)

    def comment(self, place: str) -> Proposal:
        """A docstring and comments for FILE[:FUNCTION] or FILE:LINE. The program stays the same."""
        where = _function_place(place)
        file = self.folder.read(where.file)
        return comment(self.model, file, _named(file, where), self.trials, rounds=self.rounds)

    def explain(self, place: str) -> Proposal:
        """What FILE[:FUNCTION] does, in prose."""
        where = _function_place(place)
        file = self.folder.read(where.file)
        return explain(self.model, file, _named(file, where), rounds=self.rounds)

    def test(self, place: str) -> Proposal:
        """Tests of FILE:FUNCTION that pass on it and fail on mutants of it."""
        return write_tests(self.model, self._function(place), self.trials, **self._limits)

    def optimise(self, place: str, *, tests: str | None = None) -> Proposal:
        """FILE:FUNCTION in a better form; for FILE alone the first function that the linter says something about."""
        where = _function_place(place)
        file = self.folder.read(where.file)
        require_tested(file, "optimise")
        named = _named(file, where)
        function, *others = [named] if named else with_findings(file, self.trials)
        made = optimise(self.model, function, self.trials, self.folder.read(tests) if tests else None, **self._limits)
        rest = (f"the linter also says something about {', '.join(one.name for one in others)}",) if others else ()
        return replace(made, notes=(*made.notes, *rest))

    def fix(self, place: str, error: str, *, tests: str | None = None) -> Proposal:
        """FILE[:FUNCTION] without the error that a log ends with. The function is found in the log's traceback."""
        where = _function_place(place)
        file = self.folder.read(where.file)
        require_tested(file, "fix")
        error = error[-MOST_READ:]
        function = _named(file, where) or function_of_log(file, error)
        given = self.folder.read(tests) if tests else None
        return fix(self.model, function, error, self.trials, given, **self._limits)

    def review(self, diff: str) -> Proposal:
        """Findings about the lines that a unified diff adds."""
        return review(self.model, diff, rounds=self.rounds)

    def apply(self, proposal: Proposal) -> Path:
        """Write the change of a proposal into its file, atomically. ConfigError if the file changed since, or nothing does."""
        if proposal.new_text is None or proposal.read is None:
            raise ConfigError(f"{proposal.verb}: has no change to apply")
        with self._lock:  # of two changes of one file, the second one sees the first
            self.folder.replace(proposal.read, proposal.new_text)
        return proposal.read.path

    def save(self, proposal: Proposal, name: str | Path) -> Path:
        """Write the patch of a proposal, or its tests, into a new file of the folder."""
        content = proposal.text if proposal.verb == "test" else proposal.patch or proposal.text
        return self.folder.create(name, content if content.endswith("\n") else f"{content}\n")

    def read_text(self, name: str | Path, last: int | None = None) -> str:
        """A diff of the folder, or so many of the last bytes of a log. ConfigError for a diff of more than 1 MB."""
        return read_bytes(self.folder.inside(name), str(name), last).decode(errors="replace")

    @property
    def _limits(self) -> dict[str, Any]:
        return {"rounds": self.rounds, "count": self.mutants}

    def _function(self, place: str) -> FunctionText:
        where = _function_place(place)
        found = _named(self.folder.read(where.file), where)
        if found is None:
            raise ConfigError(f"{place}: give FILE:FUNCTION or FILE:LINE")
        return found

    def _opened(self, language: str) -> Sandbox:
        with self._lock:
            if language not in self._sandboxes:
                self._sandboxes[language] = Sandbox(languages=language)
            return self._sandboxes[language]


def _function_place(place: str) -> Place:
    where = parse_place(place)
    if where.column:
        raise ConfigError(f"{place}: give FILE:FUNCTION or FILE:LINE; only complete takes a column")
    return where


def _named(file: SourceFile, where: Place) -> FunctionText | None:
    """The function that a place names, by its name or a line of it; None for a file."""
    return find_function(file, where.line or where.function) if where.line or where.function else None
