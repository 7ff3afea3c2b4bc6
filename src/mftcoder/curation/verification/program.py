"""Programs of the sandbox: the harness with an answer and its checks, or code that is compiled only."""

from mftcoder.curation.verification.plan import Run
from mftcoder.execution.sandbox import Program

_HARNESS = "mftcoder.curation.verification.harness"
_TESTS = "class Verdict(Exception): pass\nraise Verdict(verify())\n"
"""What the judge runs: it only hands on the text that the harness returns."""


def program(run: Run) -> Program:
    """The program of a run. The harness is imported once by the process that all programs are forks of."""
    if run.language != "python":
        return Program(run.language, {"candidate": run.code})
    verify = f"from {_HARNESS} import run\n\n\ndef verify():\n    return run({run.code!r}, {dict(run.checks)!r})\n"
    return Program("python", {"candidate": verify, "tests": _TESTS, "entry_point": "verify", "preload": _HARNESS})
