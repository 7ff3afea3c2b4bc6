"""Programs of the sandbox: the harness with an answer and its checks, or code that is compiled only."""

import marshal
from functools import cache
from importlib.resources import files

from mftcoder.curation.verification.plan import Run
from mftcoder.execution.sandbox import Program

_TESTS = "class Verdict(Exception): pass\nraise Verdict(verify())\n"
"""What the judge runs: it only hands on the text that the harness returns."""


def program(run: Run) -> Program:
    """The program of a run."""
    if run.language != "python":
        return Program(run.language, {"candidate": run.code})
    verify = f"def verify():\n    return run({run.code!r}, {dict(run.checks)!r})\n"
    return Program("python", {"candidate": f"{_harness()}\n{verify}", "tests": _TESTS, "entry_point": "verify"})


@cache
def _harness() -> str:
    """The harness as code that is compiled already: every program would compile it again. The sandbox runs this interpreter."""
    text = (files("mftcoder.curation.verification") / "harness.py").read_text(encoding="utf-8")
    compiled = marshal.dumps(compile(text, "<harness>", "exec", dont_inherit=True))
    return f"import marshal\nexec(marshal.loads({compiled!r}))"
