"""What running a record says of it: passed, failed, or not run, with the check or the reason."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mftcoder.curation.verification.config import CHECKS, CLAIMS
from mftcoder.execution.sandbox import ExecutionResult

Outcome = Literal["passed", "failed", "not_run"]
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,60}")
_VOID = re.compile(r"[a-z]{1,20}:[a-z_]{1,40}")
_WHERE = 200
_MISSING_LIBRARY = re.compile(
    r"fatal error: [^\n:]+: No such file"  # C++
    r"|package [\w.]+ does not exist"  # Java
    r"|could not import|is not in std|cannot find package"  # Go
    r"|unresolved import|can't find crate|undeclared (?:crate|type)|unresolved module or unlinked crate"  # Rust
)


@dataclass(frozen=True)
class Verdict:
    """`why` is the check that failed, or the reason why nothing was run; `checks` are those that passed."""

    outcome: Outcome
    checks: tuple[str, ...] = ()
    why: str = ""
    detail: str = ""

    @classmethod
    def failed(cls, check: str, detail: str) -> "Verdict":
        """A check does not hold."""
        return cls("failed", (), check, detail)

    @classmethod
    def not_run(cls, reason: str) -> "Verdict":
        """Nothing could be run, or what ran says nothing."""
        return cls("not_run", (), reason)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Verdict":
        return cls(**{**fields, "checks": tuple(fields["checks"])})

    @property
    def is_proof(self) -> bool:
        """Whether a result was compared with an expected one."""
        return bool(CLAIMS.intersection(self.checks))

    @property
    def name(self) -> str:
        """As it is counted: `passed tests+import`, `failed doctests`, `not run no_code`, `passed import (tests:proves_nothing)`."""
        unproved = f" ({self.detail})" if self.outcome == "passed" and self.detail and not self.is_proof else ""
        return f"{self.outcome.replace('_', ' ')} {'+'.join(self.checks) or self.why}{unproved}"

    def as_record(self) -> dict[str, Any]:
        found: dict[str, Any] = {"verdict": self.outcome}
        if self.outcome == "passed":
            found["checks"] = list(self.checks)
        else:
            found["why"] = self.why
        return {**found, "detail": self.detail} if self.detail else found


def verdict_of(result: ExecutionResult, language: str, checks: Sequence[str]) -> Verdict | None:
    """What the result of a program says; None if the sandbox failed, which says nothing."""
    if result.status == "sandbox_error":
        return None
    if language != "python":
        return _of_compiling(result)
    claimed = [check for check in checks if check in CLAIMS]
    if result.status in ("timeout", "out_of_memory"):
        reason = "too_slow" if result.status == "timeout" else "too_much_memory"
        return Verdict.failed(claimed[0], reason) if claimed else Verdict.not_run(reason)
    said = result.stderr.removeprefix("Verdict: ").split(" ", 3) if result.stderr.startswith("Verdict: ") else []
    return _of_report((*said, "", "", "", "")[:4], checks)


def _of_report(said: Sequence[str], checks: Sequence[str]) -> Verdict:
    """From the words of the harness. They come from a process that ran foreign code, so each is checked."""
    what, word, error, where = said
    if what == "passed":
        proved = (*word.split(","), "import")
        passed = tuple(check for check in CHECKS if check in checks and check in proved)
        void = ",".join(part for part in error.split(",") if _VOID.fullmatch(part))
        return Verdict("passed", passed, detail=void) if passed else Verdict("not_run", (), "proves_nothing", void)
    if what == "void" and _WORD.fullmatch(word):
        return Verdict.not_run(word)
    if what == "failed" and word in CHECKS and _WORD.fullmatch(error):
        return Verdict.failed(word, f"{error} {_one_line(where)}".strip())
    return Verdict.failed(checks[0], "the process ended")


def _of_compiling(result: ExecutionResult) -> Verdict:
    if result.status == "passed":
        return Verdict("passed", ("compile",))
    if _MISSING_LIBRARY.search(result.stderr):
        return Verdict.not_run("missing_module")
    lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or result.stderr.splitlines()
    return Verdict.failed("compile", _one_line(lines[0]) if lines else "")


def _one_line(text: str) -> str:
    """Without what differs from run to run: addresses in memory."""
    clean = "".join(char if char.isprintable() else " " for char in re.sub(r"0x[0-9a-f]{6,}", "0x...", text))
    return clean[:_WHERE].strip()


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several programs of a record: one that fails decides, then those that pass."""
    found = list(verdicts)
    failed = [verdict for verdict in found if verdict.outcome == "failed"]
    passed = [verdict for verdict in found if verdict.outcome == "passed"]
    if failed or not passed:
        return (failed or found)[0]
    checks = tuple(check for check in CHECKS if any(check in verdict.checks for verdict in passed))
    return Verdict("passed", checks, detail=next((verdict.detail for verdict in passed if verdict.detail), ""))
